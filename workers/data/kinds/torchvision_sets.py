"""CIFAR and MNIST, as they are published and as torchvision names them. Nothing is downloaded.

CIFAR is the one exception to "nothing is unpickled": torchvision unpickles the published archives. That happens only
after every file matched its published MD5, so only the authors' bytes are unpickled: a forgery would need a second
preimage, which nobody can make for MD5. MNIST's IDX files are read here.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from workers.data.confinement import inside, root_folder
from workers.data.dataset_kind import FilesBelowRoot, Source
from workers.errors import InvalidDataset
from workers.spec import RelativePath, Size

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.events import ShouldStop, Split


class TorchvisionDataset(FilesBelowRoot):
    """A torchvision dataset from local files below the data root; nothing is downloaded."""

    kinds: ClassVar[Mapping[str, str]] = {
        "cifar10": "the published archive, unpacked",
        "cifar100": "the published archive, unpacked",
        "mnist": "the IDX files",
        "fashion_mnist": "the IDX files",
        "kmnist": "the IDX files",
    }
    sought: ClassVar[str] = "CIFAR and MNIST"
    recipes: ClassVar[Mapping[str, str]] = {
        "cifar10": "small-pictures",
        "cifar100": "small-pictures",
        "mnist": "mnist",
        # Clothes may be mirrored.
        "fashion_mnist": "small-pictures",
        "kmnist": "mnist",
    }

    kind: Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist"]
    path: RelativePath = "."

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield every one of them for every folder."""
        if entry.is_dir():
            yield from (cls.model_validate({"kind": kind, "path": name}) for kind in cls.kinds)

    @property
    def picture_size(self) -> Size:
        """Size of the published pictures."""
        return _SETS[self.kind].size

    def examine(self, data_root: Path) -> Source:
        """Look for the published files; read the IDX files' headers and labels."""
        return _SETS[self.kind].examine(self, self.resolve(data_root), root_folder(data_root))

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in the order of the published files."""
        return _SETS[self.kind].decode(source, split, should_stop)


@dataclass(frozen=True)
class _Published(ABC):
    """A published dataset: its files and their form.

    Attributes:
        size: (height, width) of its pictures.
    """

    size: Size

    @abstractmethod
    def examine(self, spec: TorchvisionDataset, path: Path, root: Path) -> Source:
        """See ``DatasetKind.examine``; both paths have their symbolic links followed."""

    @abstractmethod
    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """See ``DatasetKind.decode``."""


@dataclass(frozen=True)
class _Cifar(_Published):
    """An archive of cs.toronto.edu/~kriz/cifar.html, Python version.

    Attributes:
        folder, files, meta: names in the archive.
        reader: name of torchvision's class.
    """

    folder: str
    files: "Mapping[Split, tuple[str, ...]]"
    meta: str
    classes: int
    reader: str

    def examine(self, spec: TorchvisionDataset, path: Path, root: Path) -> Source:
        folder = path if path.name == self.folder else path / self.folder
        names = [name for of_split in self.files.values() for name in of_split] + [self.meta]
        missing = [name for name in names if not inside(folder / name, root).is_file()]
        if missing:
            raise InvalidDataset(
                f"{spec.kind} needs the files of the published archive in {folder}; missing: "
                f"{', '.join(missing)}. Unpack the Python version there, or correct the path"
            )
        return Source(
            spec=spec,
            path=folder,
            samples={"train": 50_000, "test": 10_000},
            classes=self.classes,
            class_names=None,
            files={split: tuple(folder / name for name in (*names, self.meta)) for split, names in self.files.items()},
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        import numpy as np
        from torchvision import datasets  # 1 s

        from workers.data.decoding.blocks import from_array
        from workers.data.labelling.labels import check_labels

        folder = source.files[split][0].parent
        reader = getattr(datasets, self.reader)
        _check_md5(folder, reader)
        data = reader(str(folder.parent), train=split == "train")
        labels = np.asarray(data.targets, dtype=np.int64)
        check_labels(labels, len(data.classes), folder)
        return from_array(data.data, labels, data.classes, should_stop)


def _check_md5(folder: Path, published: Any) -> None:  # noqa: ANN401 - torchvision is untyped
    meta = (published.meta["filename"], published.meta["md5"])
    for name, expected in (*published.train_list, *published.test_list, meta):
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            raise InvalidDataset(
                f"{folder / name} has the MD5 {found}, the published file has {expected}. The file is a "
                "pickle, which can run code, so nothing but the published bytes is read: unpack the "
                "original archive again, or bring the pictures as kind 'folder' or 'npz'"
            )


_IDX_PREFIX: "Mapping[Split, str]" = {"train": "train", "test": "t10k"}
_IDX_ENDINGS = ("-idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte", ".idx{}-ubyte.gz")


@dataclass(frozen=True)
class _Idx(_Published):
    """Four IDX files, each packed by gzip or not.

    Attributes:
        folders: in which they may lie, below the client's path.
    """

    folders: tuple[str, ...]
    class_names: tuple[str, ...]

    def examine(self, spec: TorchvisionDataset, path: Path, root: Path) -> Source:
        from workers.data.headers import idx_shape
        from workers.data.labelling.labels import LABELS_MAX, check_idx_labels

        folders = [path / name for name in self.folders]
        for folder in folders:
            files = {split: _idx_pair(folder, _IDX_PREFIX[split], root) for split in _IDX_PREFIX}
            if all(len(pair) == 2 for pair in files.values()):
                break
        else:
            raise InvalidDataset(
                f"{spec.kind} needs train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k "
                f"(or each with .gz) in one of {', '.join(map(str, folders))}"
            )
        shapes = {split: idx_shape(files[split][0]) for split in _IDX_PREFIX}
        for split in _IDX_PREFIX:
            labels = idx_shape(files[split][1])
            if len(shapes[split]) != 3 or labels != shapes[split][:1]:
                raise InvalidDataset(
                    f"{files[split][0]} holds {list(shapes[split])} and {files[split][1]} {list(labels)}; "
                    "expected pictures [N, height, width] and N labels"
                )
            if labels[0] > LABELS_MAX:
                raise InvalidDataset(f"{files[split][1]} announces {labels[0]} labels, at most {LABELS_MAX} are read")
        if shapes["train"][1:] != shapes["test"][1:]:
            raise InvalidDataset(
                f"{path}: training pictures are {shapes['train'][1:]}, test pictures {shapes['test'][1:]}"
            )
        check_idx_labels({split: files[split][1] for split in _IDX_PREFIX}, self.class_names)
        return Source(
            spec=spec,
            path=folder,
            samples={split: shapes[split][0] for split in _IDX_PREFIX},
            classes=10,
            class_names=self.class_names,
            files=files,
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        from workers.data.decoding.blocks import Decoding, block_rows, stoppable
        from workers.data.headers import idx_pieces, idx_shape
        from workers.data.labelling.labels import idx_labels

        images_path = source.files[split][0]
        labels = idx_labels({part: files[1] for part, files in source.files.items()}, self.class_names)
        count, height, width = idx_shape(images_path)
        blocks = (piece[..., None] for piece in idx_pieces(images_path, block_rows(height * width)))
        return Decoding((count, height, width, 1), labels[split], self.class_names, stoppable(blocks, should_stop))


def _idx_pair(folder: Path, prefix: str, root: Path) -> tuple[Path, ...]:
    """(pictures, labels) of one split; shorter where a file is missing."""
    pair = []
    for stem, dimensions in ((f"{prefix}-images", 3), (f"{prefix}-labels", 1)):
        candidates = [folder / (stem + ending.format(dimensions)) for ending in _IDX_ENDINGS]
        pair += [c for c in candidates if inside(c, root).is_file()][:1]
    return tuple(pair)


_SETS: Mapping[str, _Published] = {
    "cifar10": _Cifar(
        size=(32, 32),
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
        meta="batches.meta",
        classes=10,
        reader="CIFAR10",
    ),
    "cifar100": _Cifar(
        size=(32, 32),
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        meta="meta",
        classes=100,
        reader="CIFAR100",
    ),
    "mnist": _Idx(
        size=(28, 28),
        folders=(".", "raw", "MNIST/raw", "MNIST", "mnist"),
        class_names=tuple("0123456789"),
    ),
    "fashion_mnist": _Idx(
        size=(28, 28),
        folders=(".", "raw", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "kmnist": _Idx(
        size=(28, 28),
        folders=(".", "raw", "KMNIST/raw", "KMNIST", "kmnist"),
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}
