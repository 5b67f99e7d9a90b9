"""Datasets in one ``.npz`` file."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names import check_class_names
from workers.data.class_names_option import OPTION, ClassNames
from workers.data.kinds.base import SPLIT_NAMES, FilesBelowRoot, Option, Source
from workers.errors import InvalidDataset

if TYPE_CHECKING:
    from workers.data.blocks import Decoding
    from workers.data.headers import Headers
    from workers.events import ShouldStop, Split

_PARTS = ("images", "labels")


class NpzDataset(FilesBelowRoot):
    """One ``.npz`` of ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    A validation split (``validation_``, ``valid_`` or ``val_``) may be there, the test split may be missing. Images are
    uint8 [N, H, W] or [N, H, W, C], labels integers [N], ``class_names`` (optional) strings. A picture without a label
    has -1; of a split without any the labels are left out.

    Attributes:
        class_names: in the place of the file's.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "npz": "one file: `train_images`, `train_labels`, `test_images`, `test_labels`, optionally `val_images`, "
        "`val_labels` (or `validation_`) and `class_names`; label -1, or no labels of a split: pictures without labels"
    }
    options: ClassVar[Mapping[str, Option]] = {**FilesBelowRoot.options, "class_names": OPTION}
    sought: ClassVar[str] = ".npz files"

    kind: Literal["npz"] = "npz"
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a file of that name."""
        if entry.suffix == ".npz":
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """Read the arrays' headers, and all labels piece by piece."""
        from workers.data.headers import npz_headers
        from workers.data.labels import check_npz_labels, npz_class_names

        path = self.resolve(data_root)
        prefixes = _prefixes(path)
        needed = [f"{prefix}_images" for prefix in prefixes.values()]
        arrays = {split: f"{prefix}_labels" for split, prefix in prefixes.items()}
        headers = npz_headers(path, needed, optional=["class_names", *arrays.values()])
        shapes = {split: _shape(path, headers, prefix) for split, prefix in prefixes.items()}
        for split, shape in shapes.items():
            if shape[1:] != shapes["train"][1:]:
                raise InvalidDataset(
                    f"{path}: training pictures are {list(shapes['train'][1:])}, {split} pictures "
                    f"{list(shape[1:])} (height, width, channels)"
                )
        labels = {split: array for split, array in arrays.items() if array in headers}
        names = npz_class_names(path, headers, labels, self.class_names)
        if names:
            check_class_names(names, path)
        labelled = check_npz_labels(path, names, labels)
        return Source(
            spec=self,
            path=path,
            samples={split: shape[0] for split, shape in shapes.items()},
            classes=len(names),
            class_names=names,
            files=dict.fromkeys(prefixes, (path,)),
            labelled={
                split: count for split, (total, *_) in shapes.items() if (count := labelled.get(split, 0)) < total
            },
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in the order of the arrays."""
        import numpy as np

        from workers.data.blocks import Decoding, block_rows, stoppable
        from workers.data.headers import npz_headers, npz_pieces
        from workers.data.labels import npz_labels
        from workers.unlabelled import with_unlabelled

        path = source.files[split][0]
        prefixes = _prefixes(path)
        name = f"{prefixes[split]}_images"
        arrays = {of: f"{prefix}_labels" for of, prefix in prefixes.items()}
        there = npz_headers(path, [], optional=list(arrays.values()))
        labels = npz_labels(
            path, source.class_names or (), {of: array for of, array in arrays.items() if array in there}
        )
        count, height, width, *channels = npz_headers(path, [name])[name].shape
        shape = (count, height, width, channels[0] if channels else 1)
        step = block_rows(math.prod(shape[1:]))
        names = source.class_names or ()
        labels_N = with_unlabelled(labels.get(split, np.empty(0, dtype=np.int64)), count)
        blocks = (np.ascontiguousarray(piece).reshape(-1, *shape[1:]) for piece in npz_pieces(path, name, step))
        return Decoding(shape, labels_N, names, stoppable(blocks, should_stop))


def _prefixes(path: Path) -> "dict[Split, str]":
    """Prefix of the arrays of each split that is there.

    Raises:
        InvalidDataset: one split is there under two names.
    """
    from workers.data.headers import npz_headers

    every = [f"{name}_{part}" for names in SPLIT_NAMES.values() for name in names for part in _PARTS]
    there = npz_headers(path, [], optional=every)
    prefixes: dict[Split, str] = {}
    for split, names in SPLIT_NAMES.items():
        found = [name for name in names if any(f"{name}_{part}" in there for part in _PARTS)]
        if len(found) > 1:
            raise InvalidDataset(
                f"{path} holds {found[0]}_ and {found[1]}_ arrays, which both mean the {split} split: keep one of them"
            )
        if found or split == "train":
            prefixes[split] = (found or names)[0]
    return prefixes


def _shape(path: Path, headers: "Headers", split: str) -> tuple[int, ...]:
    """(N, height, width, channels) of a split whose headers fit together; ``split`` is the prefix of its arrays."""
    images, labels = headers[f"{split}_images"], headers.get(f"{split}_labels")
    shape = images.shape
    full = (*shape, 1) if len(shape) == 3 else shape
    if images.dtype != "uint8" or len(full) != 4 or full[3] not in (1, 3) or 0 in full:
        raise InvalidDataset(
            f"{path}: {split}_images is {images}; expected uint8 [N, height, width] or "
            "[N, height, width, 1 or 3], not empty"
        )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != shape[:1]):
        raise InvalidDataset(f"{path}: {split}_labels is {labels}; expected integers [{shape[0]}], one per picture")
    return full
