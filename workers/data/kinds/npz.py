"""Datasets in one ``.npz`` file."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names_option import OPTION, ClassNames
from workers.data.dataset_kind import SPLIT_NAMES, FilesBelowRoot, Option, Source
from workers.data.labelling.class_names import check_class_names
from workers.errors import InvalidDataset

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.data.headers import Headers
    from workers.events import ShouldStop, Split

# Names of the arrays of pictures and labels of a split: this project's and MedMNIST's, Keras's, scikit-learn's.
_FORMS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}"))
# Those of a file without splits, which is a training split.
_WHOLE = (("images", "labels"), ("x", "y"), ("X", "y"))
_EXPECTED = "expected uint8 [N, height, width], [N, height, width, 1 or 3] or [N, 1 or 3, height, width], not empty"


class NpzDataset(FilesBelowRoot):
    """One ``.npz`` of ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Or ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has them, or ``images`` and ``labels`` without splits.
    A validation split (``validation``, ``valid`` or ``val``) may be there, the test split may be missing. Images are
    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], labels integers [N] or [N, 1], ``class_names`` (optional) strings. A
    picture without a label has -1; of a split without any the labels are left out.

    Attributes:
        channels: whether the channels of pictures of rank 4 come ``first`` or ``last``; None goes by the shape, which
            tells unless both may be meant.
        class_names: in the place of the file's.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "npz": "one file: `train_images`, `train_labels`, `test_images`, `test_labels`, optionally `val_images`, "
        "`val_labels` (or `validation_`) and `class_names`; or `x_train`, `y_train`, ... as Keras has them, or "
        "`images` and `labels` without splits; label -1, or no labels of a split: pictures without labels"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **FilesBelowRoot.options,
        "channels": Option("Of an npz: where the channels of its pictures are.", "as the shape tells"),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = ".npz files"

    kind: Literal["npz"] = "npz"
    # Joined later, as ``Training.cuda_graph``.
    channels: Literal["first", "last"] | None = Field(None, exclude_if=lambda given: given is None)
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a file of that name."""
        if entry.suffix == ".npz":
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """Read the arrays' headers, and all labels piece by piece."""
        from workers.data.labelling.labels import check_npz_labels, npz_classes

        path = self.resolve(data_root)
        arrays = _arrays(path)
        headers, labels = _headers(path, arrays)
        shapes = {split: self._shape(path, headers, *pair) for split, pair in arrays.items()}
        for split, shape in shapes.items():
            if shape[1:] != shapes["train"][1:]:
                raise InvalidDataset(
                    f"{path}: training pictures are {list(shapes['train'][1:])}, {split} pictures "
                    f"{list(shape[1:])} (height, width, channels)"
                )
        classes = npz_classes(path, headers, labels, self.class_names)
        if classes.names:
            check_class_names(classes.names, path)
        labelled = check_npz_labels(path, classes, labels)
        return Source(
            spec=self,
            path=path,
            samples={split: shape[0] for split, shape in shapes.items()},
            classes=len(classes.names),
            class_names=classes.names,
            files=dict.fromkeys(arrays, (path,)),
            labelled={
                split: count for split, (total, *_) in shapes.items() if (count := labelled.get(split, 0)) < total
            },
            notes=classes.notes,
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in the order of the arrays."""
        import numpy as np

        from workers.data.decoding.blocks import Decoding, block_rows, stoppable
        from workers.data.headers import npz_pieces
        from workers.data.labelling.labels import npz_classes, npz_labels
        from workers.unlabelled import with_unlabelled

        path = source.files[split][0]
        arrays = _arrays(path)
        images, of_split = arrays[split]
        headers, labels = _headers(path, arrays)
        shape = self._shape(path, headers, images, of_split)
        classes = npz_classes(path, headers, labels, self.class_names)
        pieces = npz_pieces(path, images, block_rows(math.prod(shape[1:])))
        if self._channels_first(path, headers, images):
            pieces = (piece.transpose(0, 2, 3, 1) for piece in pieces)
        blocks = (np.ascontiguousarray(piece).reshape(-1, *shape[1:]) for piece in pieces)
        known = npz_labels(path, classes, labels)
        labels_N = with_unlabelled(known.get(split, np.empty(0, dtype=np.int64)), shape[0])
        return Decoding(shape, labels_N, classes.names, stoppable(blocks, should_stop))

    def _shape(self, path: Path, headers: "Headers", images: str, labels: str) -> tuple[int, int, int, int]:
        """(N, height, width, channels) of a split whose headers fit together; of the names of its arrays."""
        found = headers[images]
        if found.dtype != "uint8":
            raise InvalidDataset(f"{path}: {images} is {found}; {_EXPECTED}{_way_to_uint8(found.dtype.kind)}")
        shape = (*found.shape, 1) if len(found.shape) == 3 else found.shape
        if self._channels_first(path, headers, images):
            shape = (shape[0], *shape[2:], shape[1])
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            flat = "; make pictures of the rows by numpy.reshape" if len(shape) == 2 else ""
            raise InvalidDataset(f"{path}: {images} is {found}; {_EXPECTED}{flat}")
        _check_labels(path, headers, labels, shape[0])
        count, height, width, channels = shape
        return count, height, width, channels

    def _channels_first(self, path: Path, headers: "Headers", images: str) -> bool:
        """Whether pictures are [N, C, H, W].

        Raises:
            InvalidDataset: they may be either.
        """
        shape = headers[images].shape
        if len(shape) != 4:
            return False
        first, last = (size in (1, 3) for size in (shape[1], shape[3]))
        if self.channels is None and first and last:
            raise InvalidDataset(
                f"{path}: {images} is {headers[images]}, so its channels may come first or last: say which with "
                '"channels": "first" or "last" (--channels)'
            )
        return self.channels == "first" or (self.channels is None and first)


def _arrays(path: Path) -> "dict[Split, tuple[str, str]]":
    """Names of the arrays of pictures and labels of each split that is there.

    Raises:
        InvalidDataset: one split is there under two names.
    """
    from workers.data.headers import npz_headers

    pairs: dict[Split, list[tuple[str, str]]] = {
        split: [(images.format(name), labels.format(name)) for images, labels in _FORMS for name in names]
        for split, names in SPLIT_NAMES.items()
    }
    every = [name for of_split in (*pairs.values(), _WHOLE) for pair in of_split for name in pair]
    there = npz_headers(path, [], optional=every)
    arrays: dict[Split, tuple[str, str]] = {}
    for split, of_split in pairs.items():
        # Without pictures, labels alone tell which are missing.
        found = [pair for pair in of_split if pair[0] in there] or [pair for pair in of_split if pair[1] in there][:1]
        if len(found) > 1:
            raise InvalidDataset(
                f"{path} holds {found[0][0]} and {found[1][0]}, which both mean the {split} split: keep one of them"
            )
        if found:
            arrays[split] = found[0]
    if not arrays:
        whole = [pair for pair in _WHOLE if pair[0] in there]
        return {"train": whole[0] if whole else pairs["train"][0]}
    # Named as the others are, where it is missing.
    return {"train": pairs["train"][0], **arrays}


def _headers(path: Path, arrays: "Mapping[Split, tuple[str, str]]") -> "tuple[Headers, dict[Split, str]]":
    """Headers of the arrays that are there, and the name of the labels of each split that has some."""
    from workers.data.headers import npz_headers

    optional = ["class_names", *(labels for _, labels in arrays.values())]
    headers = npz_headers(path, [images for images, _ in arrays.values()], optional=optional)
    return headers, {split: labels for split, (_, labels) in arrays.items() if labels in headers}


def _way_to_uint8(kind: str) -> str:
    """Advice about pictures of another dtype, by its kind."""
    if kind == "f":
        return (
            ". Of values from 0 to 1 save numpy.round(images * 255).astype('uint8'); undo a normalisation by mean and "
            "std before that"
        )
    if kind == "b":
        return ". Save images.astype('uint8') * 255"
    return ". Of values from 0 to 255 save images.astype('uint8')" if kind in "iu" else ""


def _check_labels(path: Path, headers: "Headers", name: str, count: int) -> None:
    """Refuse labels that are not one integer per picture, [N] or, as MedMNIST has them, [N, 1]."""
    if name not in headers:
        return
    found = headers[name]
    if found.dtype.kind in "iub" and found.shape in ((count,), (count, 1)):
        return
    advice = ""
    if len(found.shape) == 2 and found.shape[0] == count and found.shape[1] > 1:
        advice = ". Of one-hot rows save labels.argmax(axis=1); several labels of one picture are not supported"
    elif found.dtype.kind == "f":
        advice = ". Save labels.astype('int64')"
    raise InvalidDataset(f"{path}: {name} is {found}; expected integers [{count}], one per picture{advice}")
