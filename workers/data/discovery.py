"""Where a data set lies and what is in it, found without decoding a picture.

The API process uses this to refuse a data set while the client still waits, and ``workers.data.prepared``
to know what to decode. It reads directory listings, file headers and labels only, so it loads neither
torch nor PIL nor scikit-learn; what only decoding can show (a truncated JPEG) is found later, when the
data set is prepared.

A client names a path below the operator's data root and nothing else: ``..``, absolute paths and
symbolic links that lead out of the root are refused. Whoever may write below the root is trusted not
to swap files between this check and the reading.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from workers.config.dataset import DatasetSpec, DigitsDataset, FolderDataset, NpzDataset, TorchvisionDataset
from workers.data.headers import Headers, idx_shape, npz_headers
from workers.data.labels import LABELS_MAX, SPLITS, check_idx_labels, check_npz_labels, npz_class_names
from workers.errors import InvalidDataset
from workers.events import Split
from workers.texts import code_points, composed, difference, differences, listed

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

FASHION_MNIST_CLASSES = (
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
)
TEN_DIGITS = tuple("0123456789")

# Raised when the meaning of a source changes (another order, another split of the digits), so that
# copies prepared under the old rules are not taken for the new ones.
_RULES = 1


@dataclass(frozen=True)
class Source:
    """A data set that was found and looks complete.

    Attributes:
        spec: what the client asked for.
        path: the file or folder, inside the data root; None for the digits, which scikit-learn ships.
        samples: pictures of each split.
        classes: how many.
        class_names: in label order; None where only decoding tells (CIFAR's).
        files: what has to be read for each split. A folder's pictures are ordered by class name,
            then file name.
        class_counts: of a folder, pictures of each class in label order; empty for other kinds.
        ignored: files below a folder's classes that are no pictures.
    """

    spec: DatasetSpec
    path: Path | None
    samples: Mapping[Split, int]
    classes: int
    class_names: tuple[str, ...] | None
    files: Mapping[Split, tuple[Path, ...]]
    class_counts: Mapping[Split, tuple[int, ...]] = field(default_factory=dict)
    ignored: tuple[Path, ...] = ()

    def key(self) -> str:
        """SHA-256 (64 hex) of the spec and of every file's path, size and modification time.

        A file changed in place without a new size or time is not noticed, as with make and rsync.
        How the pictures are stored is left out: it does not change what they are.
        """
        digest = hashlib.sha256()
        header = [_RULES, self.spec.model_dump(mode="json", exclude={"storage"}), str(self.path)]
        if self.path is None:
            header.append(importlib.metadata.version("scikit-learn"))
        digest.update(json.dumps(header, sort_keys=True).encode())
        for split in SPLITS:
            for path in self.files[split]:
                status = path.stat()
                line = [split, str(path), status.st_size, status.st_mtime_ns]
                digest.update(json.dumps(line).encode())
        return digest.hexdigest()


def examine(spec: DatasetSpec, data_root: Path) -> Source:
    """Look at a data set: cheap, nothing is decoded.

    Raises:
        InvalidDataset: the path leaves ``data_root``, files are missing or have the wrong headers, or
            a folder's classes differ between the splits or are empty.
    """
    with named_below(data_root):
        return _examine(spec, data_root)


def _examine(spec: DatasetSpec, data_root: Path) -> Source:
    match spec:
        case DigitsDataset():
            return _digits(spec)
        case TorchvisionDataset():
            path, root = resolve(spec, data_root), _root(data_root)
            find = _cifar if spec.kind in _CIFAR else _idx
            return find(spec, path, root)
        case FolderDataset():
            return _folder(spec, resolve(spec, data_root), _root(data_root))
        case NpzDataset():
            return _npz(spec, resolve(spec, data_root))


def source_key(spec: DatasetSpec, data_root: Path) -> str:
    """``examine(...).key()``: changes whenever the data set's files do."""
    return examine(spec, data_root).key()


@contextmanager
def named_below(data_root: Path) -> Iterator[None]:
    """Files in the message of an InvalidDataset are named relative to the data root, as clients name them.

    Messages become answers of the API, which tell nobody where the server has its folders.
    """
    try:
        yield
    except InvalidDataset as error:
        root = str(data_root.resolve())
        message = str(error) if root == "/" else str(error).replace(f"{root}/", "").replace(root, "the data root")
        raise InvalidDataset(message) from error


# ------------------------------------------------------------------------------------- confinement


def resolve(spec: TorchvisionDataset | FolderDataset | NpzDataset, data_root: Path) -> Path:
    """The absolute path that ``spec.path`` means, symbolic links followed.

    Raises:
        InvalidDataset: it is absolute, contains ``..``, leads out of ``data_root`` or does not exist.
    """
    root, given = _root(data_root), PurePosixPath(spec.path)
    if given.is_absolute() or ".." in given.parts or "\0" in spec.path:
        raise InvalidDataset(
            f"dataset path {spec.path!r} is not allowed: give a path relative to the data root, without '..'"
        )
    path = _inside(root / given, root)
    try:
        found = path.exists()
    except OSError as error:
        raise InvalidDataset(f"dataset path {spec.path!r:.200} cannot be looked at: {error.strerror}") from error
    if not found:
        alike = _alike(root, given)
        raise InvalidDataset(
            f"dataset path {spec.path!r} does not exist below the data root{f' ({alike})' if alike else ''}"
        )
    return path


def _alike(root: Path, given: PurePosixPath) -> str | None:
    """How the first name of ``given`` that is not there differs from one that is, if a reader may take it for that."""
    folder = root
    for name in given.parts:
        if not (folder / name).exists():
            break
        folder /= name
    try:
        return next((found for other in sorted(os.listdir(folder)) if (found := difference(name, other))), None)
    except OSError:
        return None


def _root(data_root: Path) -> Path:
    root = data_root.resolve()
    if not root.is_dir():
        raise InvalidDataset("the data root is not a folder; set RETORT_DATA_ROOT to one (`retort doctor` names it)")
    return root


def _inside(path: Path, root: Path) -> Path:
    """``path`` with its symbolic links followed; they must not lead out of ``root``."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidDataset(f"dataset path {path} cannot be followed: {error}") from error
    if not resolved.is_relative_to(root):
        raise InvalidDataset(f"dataset path {path} is a symbolic link that leads out of the data root")
    return resolved


# ------------------------------------------------------------------------------------------ digits


def _digits(spec: DigitsDataset) -> Source:
    # Per class, sample 4, 9, 14, ... is test (see workers.data.decode): 355 of scikit-learn's 1,797.
    return Source(
        spec=spec,
        path=None,
        samples={"train": 10 * spec.train_per_class if spec.train_per_class else 1442, "test": 355},
        classes=10,
        class_names=TEN_DIGITS,
        files={"train": (), "test": ()},
    )


# ------------------------------------------------------------------------------------------- CIFAR


@dataclass(frozen=True)
class _Batches:
    """Names in the published archive, cs.toronto.edu/~kriz/cifar.html, Python version."""

    folder: str
    files: Mapping[Split, tuple[str, ...]]
    meta: str
    classes: int


_CIFAR: Mapping[str, _Batches] = {
    "cifar10": _Batches(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        10,
    ),
    "cifar100": _Batches("cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", 100),
}


def _cifar(spec: TorchvisionDataset, path: Path, root: Path) -> Source:
    batches = _CIFAR[spec.kind]
    folder = path if path.name == batches.folder else path / batches.folder
    names = [name for split in SPLITS for name in batches.files[split]] + [batches.meta]
    missing = [name for name in names if not _inside(folder / name, root).is_file()]
    if missing:
        raise InvalidDataset(
            f"{spec.kind} needs the files of the published archive in {folder}; missing: "
            f"{', '.join(missing)}. Unpack the Python version there, or correct the path"
        )
    return Source(
        spec=spec,
        path=folder,
        samples={"train": 50_000, "test": 10_000},
        classes=batches.classes,
        class_names=None,
        files={split: tuple(folder / name for name in (*batches.files[split], batches.meta)) for split in SPLITS},
    )


# --------------------------------------------------------------------------- MNIST, Fashion-MNIST

_IDX_FOLDERS = {
    "mnist": (".", "raw", "MNIST/raw", "MNIST", "mnist"),
    "fashion_mnist": (".", "raw", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
}
_IDX_PREFIX: Mapping[Split, str] = {"train": "train", "test": "t10k"}
_IDX_ENDINGS = ("-idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte", ".idx{}-ubyte.gz")


def _idx(spec: TorchvisionDataset, path: Path, root: Path) -> Source:
    folders = [path / name for name in _IDX_FOLDERS[spec.kind]]
    for folder in folders:
        files = {split: _idx_pair(folder, _IDX_PREFIX[split], root) for split in SPLITS}
        if all(len(pair) == 2 for pair in files.values()):
            break
    else:
        raise InvalidDataset(
            f"{spec.kind} needs train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k "
            f"(or each with .gz) in one of {', '.join(map(str, folders))}"
        )
    shapes = {split: idx_shape(files[split][0]) for split in SPLITS}
    for split in SPLITS:
        labels = idx_shape(files[split][1])
        if len(shapes[split]) != 3 or labels != shapes[split][:1]:
            raise InvalidDataset(
                f"{files[split][0]} holds {list(shapes[split])} and {files[split][1]} {list(labels)}; "
                "expected pictures [N, height, width] and N labels"
            )
        if labels[0] > LABELS_MAX:
            raise InvalidDataset(f"{files[split][1]} announces {labels[0]} labels, at most {LABELS_MAX} are read")
    if shapes["train"][1:] != shapes["test"][1:]:
        raise InvalidDataset(f"{path}: training pictures are {shapes['train'][1:]}, test pictures {shapes['test'][1:]}")
    names = FASHION_MNIST_CLASSES if spec.kind == "fashion_mnist" else TEN_DIGITS
    check_idx_labels({split: files[split][1] for split in SPLITS}, names)
    return Source(
        spec=spec,
        path=folder,
        samples={split: shapes[split][0] for split in SPLITS},
        classes=10,
        class_names=names,
        files=files,
    )


def _idx_pair(folder: Path, prefix: str, root: Path) -> tuple[Path, ...]:
    """(pictures, labels) of one split; shorter where a file is missing."""
    pair = []
    for stem, dimensions in ((f"{prefix}-images", 3), (f"{prefix}-labels", 1)):
        candidates = [folder / (stem + ending.format(dimensions)) for ending in _IDX_ENDINGS]
        pair += [c for c in candidates if _inside(c, root).is_file()][:1]
    return tuple(pair)


# ------------------------------------------------------------------------------------------ folder


def _folder(spec: FolderDataset, path: Path, root: Path) -> Source:
    classes = {split: _class_folders(path, split, root) for split in SPLITS}
    names = sorted(classes["train"])
    for split in SPLITS:
        _check_told_apart(sorted(classes[split]), path / split)
    # A class is spelt as train/ spells it: copied by another machine, test/ may be in another normal form.
    spelt = {composed(name): name for name in names}
    classes["test"] = {spelt.get(composed(name), name): folder for name, folder in classes["test"].items()}
    for here, there in (SPLITS, SPLITS[::-1]):
        only = sorted(classes[here].keys() - classes[there].keys())
        if only:
            alike = differences([*only, *sorted(classes[there].keys() - classes[here].keys())])
            raise InvalidDataset(
                f"{path}: {here}/ has the classes {listed(only)}, which {there}/ lacks; both must "
                f"hold the same class folders{''.join(f' ({found})' for found in alike[:1])}"
            )
    _check_class_names(names, path)
    ignored: list[Path] = []
    files: dict[Split, tuple[Path, ...]] = {}
    counts: dict[Split, tuple[int, ...]] = {}
    for split in SPLITS:
        pictures = [_pictures(classes[split][name], root, ignored) for name in names]
        files[split] = tuple(picture for group in pictures for picture in group)
        counts[split] = tuple(len(group) for group in pictures)
    return Source(
        spec=spec,
        path=path,
        samples={split: len(files[split]) for split in SPLITS},
        classes=len(names),
        class_names=tuple(names),
        files=files,
        class_counts=counts,
        ignored=tuple(ignored),
    )


def _entries(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in order of name, hidden entries left out, links checked."""
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if entry.is_symlink():
            _inside(Path(entry.path), root)
    return entries


def _class_folders(path: Path, split: Split, root: Path) -> dict[str, Path]:
    folder = _inside(path / split, root)
    if not folder.is_dir():
        raise InvalidDataset(
            f"{path} has no folder {split!r}; expected train/CLASS/*.jpg (or another picture format) and test/CLASS/*"
        )
    return {entry.name: Path(entry.path) for entry in _entries(folder, root) if entry.is_dir()}


def _pictures(folder: Path, root: Path, ignored: list[Path]) -> list[Path]:
    """A class's pictures in order of file name; everything else is added to ``ignored``."""
    pictures: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder, root):
        is_picture = entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file()
        (pictures if is_picture else others).append(Path(entry.path))
    if not pictures:
        raise InvalidDataset(
            f"the class folder {folder} is empty: it holds {len(others)} files but no picture "
            f"({', '.join(PICTURE_SUFFIXES)}). Fill it, or remove the class from train/ and test/"
        )
    ignored += others
    return pictures


def _check_class_names(names: Iterable[str], path: Path) -> None:
    names = list(names)
    if len(names) < 2 or len(set(names)) != len(names):
        raise InvalidDataset(
            f"{path} has the classes [{listed(map(repr, names))}]; at least two, all different, are needed"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidDataset(f"{path}: the class name {name!r} is not valid UTF-8") from error
    _check_told_apart(names, path)


def _check_told_apart(names: Iterable[str], path: Path) -> None:
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(composed(name), name)) != name:
            raise InvalidDataset(
                f"{path} has two classes that look the same, '{code_points(other)}' and '{code_points(name)}': "
                "rename one, or put their pictures together"
            )


# --------------------------------------------------------------------------------------------- npz


def _npz(spec: NpzDataset, path: Path) -> Source:
    needed = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    headers = npz_headers(path, needed, optional=["class_names"])
    shapes = {split: _npz_split(path, headers, split) for split in SPLITS}
    if shapes["train"][1:] != shapes["test"][1:]:
        raise InvalidDataset(
            f"{path}: training pictures are {list(shapes['train'][1:])}, test pictures "
            f"{list(shapes['test'][1:])} (height, width, channels)"
        )
    names = npz_class_names(path, headers)
    _check_class_names(names, path)
    check_npz_labels(path, names)
    return Source(
        spec=spec,
        path=path,
        samples={split: shapes[split][0] for split in SPLITS},
        classes=len(names),
        class_names=names,
        files=dict.fromkeys(SPLITS, (path,)),
    )


def _npz_split(path: Path, headers: Headers, split: Split) -> tuple[int, ...]:
    """(N, height, width, channels) of a split whose headers fit together."""
    images, labels = headers[f"{split}_images"], headers[f"{split}_labels"]
    shape = images.shape
    full = (*shape, 1) if len(shape) == 3 else shape
    if images.dtype != np.uint8 or len(full) != 4 or full[3] not in (1, 3) or 0 in full:
        raise InvalidDataset(
            f"{path}: {split}_images is {images}; expected uint8 [N, height, width] or "
            "[N, height, width, 1 or 3], not empty"
        )
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise InvalidDataset(f"{path}: {split}_labels is {labels}; expected integers [{shape[0]}], one per picture")
    return full
