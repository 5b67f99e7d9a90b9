"""Decoding of a split of encoded pictures, with or without the bad ones.

Legend: N samples.
"""

from collections.abc import Sequence

import numpy as np

from workers.data.decoding.bad_pictures import BadPicture, BadPictures
from workers.data.decoding.blocks import Decoding
from workers.data.decoding.encoded_rows import EncodedRows
from workers.data.decoding.picture_blocks import find_bad, first_size, read_blocks
from workers.data.decoding.picture_decoder import PictureDecoder
from workers.errors import InvalidDataset
from workers.events import ShouldStop


def decode_rows(
    rows: EncodedRows,
    train: EncodedRows,
    decoder: PictureDecoder,
    names: Sequence[str],
    *,
    skips: bool,
    should_stop: ShouldStop,
) -> Decoding:
    """Begin to decode a split.

    Args:
        train: the training split, whose first picture tells the size where none is given; ``rows`` itself if it is
            that split.
        names: of the classes, in label order.
        skips: find the pictures that are damaged by decoding all, and leave them out.

    Raises:
        BadPictures: none can be decoded.
        InvalidDataset: a class keeps no training picture.
        Stopped: ``should_stop`` returned true.
    """
    bad: list[BadPicture] = []
    kept = rows
    if skips:
        bad = find_bad(rows, decoder, should_stop)
        kept = rows.take(np.delete(np.arange(len(rows)), [each.row for each in bad])) if bad else rows
        if not len(kept):
            raise BadPictures(bad, len(rows))
        if rows is train:
            _check_every_class(rows, kept, names)
    size = decoder.image_size or first_size(kept if rows is train else train, decoder, should_stop)
    return Decoding(
        shape=(len(kept), *size, 3),
        labels_N=kept.labels_N,
        class_names=tuple(names),
        blocks=read_blocks(kept, decoder, size, should_stop),
        sample_ids=kept.ids,
        left_out=bad,
        files=kept.files,
        spans_N2=kept.spans_N2,
    )


def _check_every_class(rows: EncodedRows, kept: EncodedRows, names: Sequence[str]) -> None:
    """Refuse to leave out every training picture of a class."""
    before, after = (np.bincount(each.labels_N[each.labels_N >= 0], minlength=len(names)) for each in (rows, kept))
    empty = np.flatnonzero((before > 0) & (after == 0))
    if empty.size:
        label = int(empty[0])
        raise InvalidDataset(
            f"all {before[label]} training pictures of class {label} ({names[label]!r}) are damaged, and would be left "
            f"out ({empty.size} of {len(names)} classes): replace them, or remove the class"
        )
