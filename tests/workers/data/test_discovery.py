"""Finding datasets: nothing outside the data root, everything missing named, nothing decoded."""

import gzip
import io
import os
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workers.config.dataset import DatasetSpec
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.kinds.torchvision_sets import TorchvisionDataset
from workers.data.labelling.labels import LABELS_MAX
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset


def make_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), pictures: int = 2) -> Path:
    """root/pets/{train,test}/CLASS/{0,1,...}.png of 4 x 4 pixels."""
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(pictures):
                Image.new("RGB", (4, 4), (label, number, 0)).save(folder / f"{number}.png")
    return root / "pets"


def make_npz(path: Path, **changed: np.ndarray | None) -> Path:
    """Six training and three test pictures of 4 x 5 pixels in three classes; None leaves an array out."""
    arrays: dict[str, np.ndarray | None] = {
        "train_images": np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5),
        "train_labels": np.array([0, 1, 2, 2, 1, 0]),
        "test_images": np.zeros((3, 4, 5), dtype=np.uint8),
        "test_labels": np.array([2, 0, 1]),
    }
    arrays |= changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def make_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_mnist(folder: Path, suffix: str = "", dash: str = "-", train: int = 30, test: int = 10) -> None:
    """A small MNIST of 5 x 6 pixels: pixel values count up, labels run 0..9."""
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 30).reshape(count, 5, 6) % 251
        make_idx(folder / f"{prefix}-images{dash}idx3-ubyte{suffix}", images)
        make_idx(folder / f"{prefix}-labels{dash}idx1-ubyte{suffix}", np.arange(count) % 10)


# --------------------------------------------------------------------------------------------- confinement


@pytest.mark.parametrize("path", ["../pets", "pets/../../pets", "pets/..", "/etc", "pets\0"])
def test_resolve_refuses_a_path_that_could_leave_the_root(tmp_path: Path, path: str) -> None:
    make_folder(tmp_path / "root")
    with pytest.raises(InvalidDataset, match=r"not allowed: give a path relative to the data root") as caught:
        FolderDataset(path=path).resolve(tmp_path / "root")
    assert repr(path) in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InvalidDataset, match=r"^the dataset path is absolute, which is not allowed: give a path relat"):
        FolderDataset(path=f"{tmp_path}/root/pets").resolve(tmp_path / "root")


@pytest.mark.parametrize("link", ["pets", "pets/train", "pets/test/cat", "pets/train/dog/1.png"])
def test_resolve_refuses_a_symbolic_link_that_leaves_the_root(tmp_path: Path, link: str) -> None:
    root = tmp_path / "root"
    make_folder(root)
    outside = tmp_path / "outside"
    (root / link).rename(outside)
    (root / link).symlink_to(outside)
    with pytest.raises(InvalidDataset, match=r"link that leads out of the data root") as caught:
        examine(FolderDataset(path="pets"), root)
    assert f"dataset path {link} " in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_resolve_follows_a_symbolic_link_within_the_root(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "animals").symlink_to(tmp_path / "pets")
    (tmp_path / "pets/train/cat/9.png").symlink_to(tmp_path / "pets/train/dog/0.png")
    source = examine(FolderDataset(path="animals"), tmp_path)
    assert source.path == tmp_path / "pets"
    assert source.samples == {"train": 5, "test": 4}


def test_resolve_takes_a_root_that_is_a_link_and_the_dataset_itself(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "root").symlink_to(tmp_path / "pets")
    assert examine(FolderDataset(path="."), tmp_path / "root").path == tmp_path / "pets"


def test_resolve_refuses_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "pets").symlink_to(tmp_path / "pets")
    with pytest.raises(InvalidDataset, match="pets"):
        FolderDataset(path="pets").resolve(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "t10k-labels-idx1-ubyte"])
def test_examine_refuses_a_published_file_that_links_out_of_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    make_mnist(root)
    (root / "cifar-10-batches-py").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "secret")
    kind = "cifar10" if "cifar" in name else "mnist"
    with pytest.raises(InvalidDataset, match="leads out of the data root"):
        examine(TorchvisionDataset(kind=kind), root)


def test_examine_names_missing_paths_and_roots(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"'nothing' does not exist below the data root"):
        NpzDataset(path="nothing").resolve(tmp_path)
    with pytest.raises(InvalidDataset, match=r"^the data root is not a folder; set RETORT_DATA_ROOT"):
        NpzDataset(path="nothing").resolve(tmp_path / "absent")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (FolderDataset(path="sets/pets"), "^the class folder sets/pets/train/dog is empty"),
        (NpzDataset(path="sets/a.npz"), "^sets/a.npz lacks"),
        (NpzDataset(path="sets"), r"^sets cannot be read as an .npz of arrays: .*'sets'$"),
        (TorchvisionDataset(kind="mnist", path="sets"), "in one of sets, sets/raw"),
        (TorchvisionDataset(kind="cifar10", path="."), "published archive in cifar-10-batches-py; missing"),
        (FolderDataset(path="."), "^the data root has no folder 'train'"),
    ],
)
def test_examine_names_files_as_clients_name_them_below_the_data_root(
    tmp_path: Path, spec: DatasetSpec, named: str
) -> None:
    """An answer tells nothing of where the server has its folders."""
    for picture in (make_folder(tmp_path / "root/sets") / "train/dog").iterdir():
        picture.unlink()
    make_npz(tmp_path / "root/sets/a.npz", train_images=None)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    for root in ("root", "link"):
        with pytest.raises(InvalidDataset, match=named) as caught:
            examine(spec, tmp_path / root)
        assert str(tmp_path) not in str(caught.value)


# -------------------------------------------------------------------------------------------------- folder


def test_folder_is_listed_by_class_and_file_name(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ("dog", "Zebra", "ape"), pictures=11)
    (folder / "train/dog/.hidden.png").write_bytes(b"")
    (folder / "train/.cache").mkdir()
    (folder / "train/readme.txt").write_text("hello")
    (folder / "train/dog/Thumbs.db").write_bytes(b"")
    (folder / "train/dog/UPPER.JPG").write_bytes(b"")
    source = examine(FolderDataset(path="pets"), tmp_path)
    assert source.class_names == ("Zebra", "ape", "dog")
    assert source.classes == 3
    assert source.samples == {"train": 34, "test": 33}
    assert source.class_counts == {"train": (11, 11, 12), "test": (11, 11, 11)}
    names = [path.relative_to(folder).as_posix() for path in source.files["train"]]
    numbers = sorted(f"{n}.png" for n in range(11))
    assert names[:11] == [f"train/Zebra/{number}" for number in numbers]
    assert names[22:] == [f"train/dog/{number}" for number in [*numbers, "UPPER.JPG"]]
    assert source.ignored == (folder / "train/dog/Thumbs.db",)


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_with_an_empty_class_is_named(tmp_path: Path, split: str) -> None:
    folder = make_folder(tmp_path) / split / "dog"
    for picture in folder.iterdir():
        picture.rename(picture.with_suffix(".txt"))
    with pytest.raises(InvalidDataset, match=rf"{split}/dog is empty: it holds 2 files but no picture"):
        examine(FolderDataset(path="pets"), tmp_path)


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_folder_with_classes_of_one_split_only_names_them(tmp_path: Path, split: str, other: str) -> None:
    (make_folder(tmp_path) / split / "bird").mkdir()
    with pytest.raises(InvalidDataset, match=rf"{split}/ has the classes bird, which {other}/ lacks"):
        examine(FolderDataset(path="pets"), tmp_path)


NFC, NFD = "th\u00e9", "the\u0301"


@pytest.mark.parametrize(("in_train", "in_test"), [(NFC, NFD), (NFD, NFC)])
def test_class_names_in_two_normal_forms_are_one_as_train_spells_it(
    tmp_path: Path, in_train: str, in_test: str
) -> None:
    folder = make_folder(tmp_path, ("cat", in_train))
    (folder / "test" / in_train).rename(folder / "test" / in_test)
    source = examine(FolderDataset(path="pets"), tmp_path)
    assert source.class_names == ("cat", in_train)
    assert [path.parent.name for path in source.files["test"]] == ["cat", "cat", in_test, in_test]


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_names_of_one_split_that_look_the_same_are_refused(tmp_path: Path, split: str) -> None:
    folder = make_folder(tmp_path, ("cat", NFC))
    shutil.copytree(folder / split / NFC, folder / split / NFD)
    message = rf"{split} has two classes that look the same, 'the<U\+0301>' and 'th<U\+00E9>': rename one"
    with pytest.raises(InvalidDataset, match=message):
        examine(FolderDataset(path="pets"), tmp_path)


def test_npz_class_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz", class_names=np.array(["cat", NFC, NFD]))
    with pytest.raises(InvalidDataset, match=r"look the same, 'th<U\+00E9>' and 'the<U\+0301>'"):
        examine(NpzDataset(path="a.npz"), tmp_path)


def test_class_names_that_differ_in_case_between_the_splits_are_refused_as_such(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "test/cat").rename(folder / "test/Cat")
    with pytest.raises(
        InvalidDataset, match=r"classes cat, which test/ lacks.*\('cat' and 'Cat' differ only in case\)"
    ):
        examine(FolderDataset(path="pets"), tmp_path)


@pytest.mark.parametrize(("given", "how"), [("Sets/thé", "case"), ("sets/the\u0301", "Unicode's normal form")])
def test_resolve_of_a_missing_path_names_one_that_looks_the_same(tmp_path: Path, given: str, how: str) -> None:
    (tmp_path / "sets" / NFC).mkdir(parents=True)
    with pytest.raises(InvalidDataset, match=rf"does not exist below the data root .* differ only in {how}\)"):
        FolderDataset(path=given).resolve(tmp_path)


def test_folder_without_a_split_or_with_one_class_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ("cat",))
    with pytest.raises(InvalidDataset, match=r"\['cat'\]; at least two"):
        examine(FolderDataset(path="pets"), tmp_path)
    (folder / "train").rename(folder / "learn")
    with pytest.raises(InvalidDataset, match=r"pets has no folder 'train'; expected train/CLASS"):
        examine(FolderDataset(path="pets"), tmp_path)


def test_folder_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = make_folder(tmp_path / split) / split / "cat"
        folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    (tmp_path / "test/pets/test").rename(tmp_path / "train/pets/moved")
    (tmp_path / "train/pets/test").rename(tmp_path / "train/pets/old")
    (tmp_path / "train/pets/moved").rename(tmp_path / "train/pets/test")
    with pytest.raises(InvalidDataset, match="not valid UTF-8"):
        examine(FolderDataset(path="train/pets"), tmp_path)


# ----------------------------------------------------------------------------------------------------- npz


def test_npz_is_known_by_its_headers(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz")
    source = examine(NpzDataset(path="a.npz"), tmp_path)
    assert (source.samples, source.classes, source.class_names) == ({"train": 6, "test": 3}, 3, ("0", "1", "2"))
    make_npz(tmp_path / "b.npz", class_names=np.array(["x", "y", "z"]))
    source = examine(NpzDataset(path="b.npz"), tmp_path)
    assert (source.classes, source.class_names) == (3, ("x", "y", "z"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_images": None}, r"lacks test_images; it holds train_images, train_labels, test_labels"),
        ({"train_images": np.zeros((6, 4, 5))}, r"train_images is float64 \[6, 4, 5\]; expected uint8"),
        ({"test_images": np.zeros((3, 4, 5, 2), np.uint8)}, r"test_images is uint8 \[3, 4, 5, 2\]"),
        ({"test_images": np.zeros((3, 20), np.uint8)}, r"test_images is uint8 \[3, 20\]"),
        ({"test_images": np.zeros((3, 4, 6), np.uint8)}, r"\[4, 5, 1\], test pictures \[4, 6, 1\]"),
        ({"test_images": np.zeros((0, 4, 5), np.uint8), "test_labels": np.zeros(0, int)}, "not empty"),
        ({"train_labels": np.zeros(6)}, r"train_labels is float64 \[6\]; expected integers \[6\]"),
        ({"train_labels": np.zeros(5, int)}, r"train_labels is int64 \[5\]; expected integers \[6\]"),
        ({"class_names": np.array([1, 2])}, r"class_names is int64 \[2\], not strings"),
        ({"class_names": np.array(["a", "a"])}, r"classes \['a', 'a'\]; at least two, all different"),
        ({"class_names": np.array(["a", "b"], dtype=object)}, r"class_names is object \[2\], not strings"),
    ],
)
def test_npz_with_wrong_arrays_is_refused(tmp_path: Path, changed: dict[str, np.ndarray | None], message: str) -> None:
    make_npz(tmp_path / "a.npz", **changed)
    with pytest.raises(InvalidDataset, match=message):
        examine(NpzDataset(path="a.npz"), tmp_path)


def npy_header(descr: str, *shape: int) -> bytes:
    """The beginning of a ``.npy`` file of this dtype and shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def with_member(path: Path, name: str, start: bytes, zeros: int, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An ``.npz`` and one more array, of zeros behind its header."""
    with zipfile.ZipFile(path, "a", method) as archive, archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        file.write(start)
        for _ in range(zeros >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(zeros % (1 << 20)))
    return path


def refusal(root: Path, path: str) -> tuple[str, int]:
    """Why a dataset is refused, and the bytes that finding out took at its peak."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset) as caught:
            examine(NpzDataset(path=path), root)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_npz_labels_are_bounded_before_they_are_unpacked(tmp_path: Path) -> None:
    """Zeros are packed a thousand to one."""
    count = LABELS_MAX + 1
    one = np.zeros((3, 1, 1), np.uint8)
    path = make_npz(tmp_path / "a.npz", train_images=None, train_labels=None, test_images=one)
    with_member(path, "train_images", npy_header("|u1", count, 1, 1), count)
    with_member(path, "train_labels", npy_header("|u1", count), count)
    found, peak = refusal(tmp_path, "a.npz")
    assert f"train_labels announces {count} labels, at most {LABELS_MAX} are read" in found
    assert peak < 8 << 20


@pytest.mark.parametrize("has_names", [True, False])
def test_labels_are_checked_piece_by_piece(tmp_path: Path, has_names: bool) -> None:
    count = 4 << 20
    names = np.array(["cat", "dog"]) if has_names else None
    one = np.zeros((3, 1, 1), np.uint8)
    path = make_npz(tmp_path / "a.npz", train_images=None, train_labels=None, class_names=names, test_images=one)
    with_member(path, "train_images", npy_header("|u1", count, 1, 1), count)
    with_member(path, "train_labels", npy_header("<i8", count), 8 * count)
    found, peak = refusal(tmp_path, "a.npz")
    assert ("class 1 ('dog') has no training" if has_names else f"all {count} training labels are 0") in found
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("dtype", "count", "message"),
    [
        ("<U1", 1 << 24, "has 16777216 classes, at most 100000 are allowed"),
        ("<U200", 30_000, "class_names has 24000000 bytes, at most 16777216 are read"),
        ("<U1", 90_000, "has the classes ['', '', '', '', '', '', '', '', '', '', ... (90000 in all)]; at least two"),
    ],
)
def test_npz_class_names_are_bounded_and_quoted_in_part(tmp_path: Path, dtype: str, count: int, message: str) -> None:
    size_bytes = count * np.dtype(dtype).itemsize
    with_member(make_npz(tmp_path / "a.npz"), "class_names", npy_header(dtype, count), size_bytes)
    found, peak = refusal(tmp_path, "a.npz")
    assert message in found
    assert len(found) < 500
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a" * 300, "b"], "a class name has 300 characters, at most 255 are allowed"),
        (np.array([0x110000, 1], "<u4").view("<U1"), "class_names cannot be read"),
    ],
)
def test_npz_class_name_that_is_too_long_or_no_text_is_refused(
    tmp_path: Path, names: list[str] | np.ndarray, message: str
) -> None:
    make_npz(tmp_path / "a.npz", class_names=np.asarray(names))
    assert message in refusal(tmp_path, "a.npz")[0]


def test_npz_whose_parts_would_be_unpacked_at_once_is_refused(tmp_path: Path) -> None:
    """A header that announces 100 MB, and bzip2, which zipfile unpacks without a bound."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (6,)}"
    start = np.lib.format.magic(2, 0) + struct.pack("<I", 100 << 20) + text
    with_member(make_npz(tmp_path / "a.npz", train_labels=None), "train_labels", start, 100 << 20)
    found, peak = refusal(tmp_path, "a.npz")
    assert "expected 104857600 bytes" in found
    assert peak < 8 << 20
    path = make_npz(tmp_path / "b.npz", train_labels=None)
    with_member(path, "train_labels", npy_header("|u1", 100 << 20), 100 << 20, zipfile.ZIP_BZIP2)
    found, peak = refusal(tmp_path, "b.npz")
    assert "train_labels.npy is packed by method 12; save it with numpy.savez" in found
    assert peak < 8 << 20


def test_class_names_of_an_npz_and_of_folders_are_listed_in_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"{n}{'x' * 200}": np.zeros(1) for n in range(100)})
    found, _ = refusal(tmp_path, "a.npz")
    assert "... (100 in all)" in found
    assert len(found) < 1200
    folder = make_folder(tmp_path)
    for number in range(100):
        (folder / "train" / f"class{number:03}").mkdir()
    with pytest.raises(
        InvalidDataset, match=r"has the classes class000, .*, class009, \.\.\. \(100 in all\), which test"
    ):
        examine(FolderDataset(path="pets"), tmp_path)


def test_idx_labels_of_a_packed_file_are_bounded_before_they_are_unpacked(tmp_path: Path) -> None:
    make_mnist(tmp_path, ".gz")
    for name, shape in (("images-idx3", (LABELS_MAX + 1, 1, 1)), ("labels-idx1", (LABELS_MAX + 1,))):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + bytes(LABELS_MAX + 1), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset, match=f"announces {LABELS_MAX + 1} labels, at most {LABELS_MAX} are read"):
            examine(TorchvisionDataset(kind="mnist"), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_npz_leaves_out_what_macos_packs_beside_the_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(make_npz(tmp_path / "a.npz"), "a") as archive:
        archive.writestr("__MACOSX/._train_images.npy", b"\0\5\x16\7")
    assert examine(NpzDataset(path="a.npz"), tmp_path).samples == {"train": 6, "test": 3}


def test_npz_refuses_files_that_are_none(tmp_path: Path) -> None:
    path = make_npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "b.npz").mkdir()
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("train_images.npy", "text")
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**12}, 9)}}"
    header = np.lib.format.magic(1, 0) + struct.pack("<H", 80) + text.encode().ljust(80)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("train_images.npy", header)
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("train_images.npy", header.replace(b"}", b" "))
    for name in "abcde":
        with pytest.raises(InvalidDataset, match=rf"{name}\.npz"):
            examine(NpzDataset(path=f"{name}.npz"), tmp_path)
    with pytest.raises(InvalidDataset, match=r"asks for 9000000000090"):
        examine(NpzDataset(path="d.npz"), tmp_path)


# --------------------------------------------------------------------------------------------- MNIST, CIFAR


@pytest.mark.parametrize(
    ("kind", "folder", "suffix", "dash"),
    [
        ("mnist", ".", "", "-"),
        ("mnist", "MNIST/raw", ".gz", "-"),
        ("mnist", "raw", "", "."),
        ("fashion_mnist", ".", ".gz", "-"),
        ("fashion_mnist", "FashionMNIST/raw", "", "-"),
        ("fashion_mnist", "fashion-mnist", ".gz", "-"),
    ],
)
def test_idx_files_are_found_in_the_usual_places(
    tmp_path: Path, kind: str, folder: str, suffix: str, dash: str
) -> None:
    make_mnist(tmp_path / folder, suffix, dash)
    source = examine(TorchvisionDataset.model_validate({"kind": kind}), tmp_path)
    assert source.samples == {"train": 30, "test": 10}
    assert source.path == (tmp_path / folder).resolve()
    assert source.classes == 10
    assert source.class_names is not None
    assert source.class_names[9] == ("Ankle boot" if kind == "fashion_mnist" else "9")


def test_idx_mnist_is_not_taken_for_fashion_mnist(tmp_path: Path) -> None:
    make_mnist(tmp_path / "MNIST/raw")
    with pytest.raises(InvalidDataset, match=r"fashion_mnist needs train-images-idx3-ubyte.*FashionMNIST/raw"):
        examine(TorchvisionDataset(kind="fashion_mnist"), tmp_path)


def test_idx_files_with_wrong_headers_are_refused(tmp_path: Path) -> None:
    spec = TorchvisionDataset(kind="mnist")
    make_mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    good = images.read_bytes()
    for bad, message in (
        (good[:-1], r"has 915 bytes, its header \[30, 5, 6\] asks for 916"),
        (good[:3], "cannot be read as an IDX file"),
        (b"\0\0\x0d" + good[3:], "not an IDX file of uint8"),
    ):
        images.write_bytes(bad)
        with pytest.raises(InvalidDataset, match=message):
            examine(spec, tmp_path)
    images.write_bytes(good)
    make_idx(labels, np.zeros(9))
    with pytest.raises(InvalidDataset, match=r"t10k-images.* holds \[10, 5, 6\] and .*t10k-labels.* \[9\]"):
        examine(spec, tmp_path)
    make_idx(labels, np.zeros(10))
    make_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((10, 6, 5)))
    with pytest.raises(InvalidDataset, match=r"training pictures are \(5, 6\), test pictures \(6, 5\)"):
        examine(spec, tmp_path)
    labels.rename(labels.with_suffix(".gz"))
    with pytest.raises(InvalidDataset, match="Not a gzipped file"):
        examine(spec, tmp_path)


@pytest.mark.parametrize("path", [".", "cifar-10-batches-py"])
def test_cifar_needs_every_published_file(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(b"")
    spec = TorchvisionDataset(kind="cifar10", path=path)
    source = examine(spec, tmp_path)
    assert (source.samples, source.classes) == ({"train": 50_000, "test": 10_000}, 10)
    (folder / "data_batch_3").unlink()
    with pytest.raises(InvalidDataset, match=r"cifar-10-batches-py; missing: data_batch_3\. Unpack"):
        examine(spec, tmp_path)


# ----------------------------------------------------------------------------------------------------- key


def test_digits_need_no_files(tmp_path: Path) -> None:
    source = examine(DigitsDataset(), tmp_path)
    assert (source.path, source.classes, source.class_names) == (None, 10, tuple("0123456789"))
    assert len(source.key()) == 64


def test_source_key_is_stable_and_changes_with_every_file(tmp_path: Path) -> None:
    folder, spec = make_folder(tmp_path), FolderDataset(path="pets")
    keys = [examine(spec, tmp_path).key()]
    assert examine(spec, tmp_path).key() == keys[0]
    picture = folder / "test/dog/1.png"
    os.utime(picture, ns=(0, 1))
    keys.append(examine(spec, tmp_path).key())
    picture.write_bytes(picture.read_bytes() + b"x")
    os.utime(picture, ns=(0, 1))
    keys.append(examine(spec, tmp_path).key())
    picture.rename(picture.with_name("2.png"))
    keys.append(examine(spec, tmp_path).key())
    (folder / "train/cat/0.png").unlink()
    keys.append(examine(spec, tmp_path).key())
    assert len(set(keys)) == len(keys)


def test_source_key_depends_on_the_spec_and_the_place(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_npz(tmp_path / "a.npz")
    specs: list[DatasetSpec] = [
        FolderDataset(path="pets"),
        FolderDataset(path="pets", image_size=(8, 8)),
        NpzDataset(path="a.npz"),
        DigitsDataset(),
    ]
    keys = {examine(spec, tmp_path).key() for spec in specs}
    before = examine(specs[0], tmp_path).key()
    (tmp_path / "pets").rename(tmp_path / "moved")
    keys.add(examine(FolderDataset(path="moved"), tmp_path).key())
    assert len(keys) == 5
    assert before in keys
