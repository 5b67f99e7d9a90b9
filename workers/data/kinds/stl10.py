"""STL-10 from its published binary files. Nothing is downloaded, and the unlabelled pictures are not read.

Coates, Ng, Lee 2011, "An Analysis of Single Layer Networks in Unsupervised Feature Learning". Published labels are
1 to 10, here 0 to 9, as in torchvision.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from workers.data.confinement import inside, root_folder
from workers.data.dataset_kind import FilesBelowRoot, Source
from workers.errors import InvalidDataset
from workers.spec import RelativePath, Size

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Blocks, Decoding
    from workers.data.labelling.labels import Labels
    from workers.events import ShouldStop, Split

_FOLDER = "stl10_binary"
_SPLITS: "tuple[Split, ...]" = ("train", "test")
_SIDE = 96
_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


class Stl10Dataset(FilesBelowRoot):
    """``stl10_binary``: ``train_X.bin`` uint8 [N, 3, 96, 96], each channel by columns, ``train_y.bin``, and of test."""

    kinds: ClassVar[Mapping[str, str]] = {"stl10": "the published binary archive, unpacked"}
    sought: ClassVar[str] = "STL-10"

    kind: Literal["stl10"] = "stl10"
    path: RelativePath = "."

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with the published one, or that."""
        if any((folder / "train_X.bin").is_file() for folder in (entry, entry / _FOLDER)):
            yield cls(path=name)

    @property
    def picture_size(self) -> Size:
        """96 x 96 pixels."""
        return _SIDE, _SIDE

    def examine(self, data_root: Path) -> Source:
        """Read the sizes of the files, and the labels."""
        path, root = self.resolve(data_root), root_folder(data_root)
        folder = path if (path / "train_X.bin").is_file() else path / _FOLDER
        files = {split: (folder / f"{split}_X.bin", folder / f"{split}_y.bin") for split in _SPLITS}
        missing = [file.name for pair in files.values() for file in pair if not inside(file, root).is_file()]
        if missing:
            raise InvalidDataset(
                f"stl10 needs the files of the published archive in {folder}; missing: {', '.join(missing)}. Unpack it "
                "there, or correct the path"
            )
        return Source(
            spec=self,
            path=folder,
            samples={split: len(_labels(*pair)) for split, pair in files.items()},
            classes=len(_NAMES),
            class_names=_NAMES,
            files=files,
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in the published order."""
        from workers.data.decoding.blocks import Decoding, stoppable

        images, labels = source.files[split]
        labels_N = _labels(images, labels)
        shape = (len(labels_N), _SIDE, _SIDE, 3)
        return Decoding(shape, labels_N, _NAMES, stoppable(_blocks(images, len(labels_N)), should_stop))


def _labels(images: Path, labels: Path) -> "Labels":
    """Labels 0..9 of a split, int64 [N], one for each picture of the file."""
    import numpy as np

    from workers.data.labelling.labels import LABELS_MAX

    count, rest = divmod(images.stat().st_size, 3 * _SIDE * _SIDE)
    if rest or not 0 < count <= LABELS_MAX or labels.stat().st_size != count:
        raise InvalidDataset(
            f"{images} has {images.stat().st_size} bytes and {labels.name} {labels.stat().st_size}; expected "
            f"{3 * _SIDE * _SIDE} for each picture and one for its label: get them again"
        )
    published = np.fromfile(labels, np.uint8)
    if published.min() < 1 or published.max() > len(_NAMES):
        wrong = published.max() if published.max() > len(_NAMES) else published.min()
        raise InvalidDataset(f"{labels} holds the label {wrong}; published ones are 1 to {len(_NAMES)}")
    return published.astype(np.int64) - 1


def _blocks(path: Path, count: int) -> "Blocks":
    import numpy as np

    from workers.data.decoding.blocks import block_rows

    row_bytes = 3 * _SIDE * _SIDE
    step = block_rows(row_bytes)
    with path.open("rb") as file:
        for start in range(0, count, step):
            rows = min(step, count - start)
            data = file.read(rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise InvalidDataset(f"{path} ends early: it has changed while it was read")
            columns = np.frombuffer(data, np.uint8).reshape(rows, 3, _SIDE, _SIDE)
            yield np.ascontiguousarray(columns.transpose(0, 3, 2, 1))
