"""Prepared datasets: the right pixels in a fixed order, one identity per content, whole or absent."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from tests.workers.data.test_discovery import make_folder, make_idx, make_mnist, make_npz
from workers.config.dataset import DatasetSpec
from workers.data.decoding import blocks as block_module
from workers.data.decoding import picture_blocks
from workers.data.decoding.pictures import FILE_MAX_BYTES, decode_picture
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.kinds.torchvision_sets import TorchvisionDataset
from workers.data.preparation import prepare as preparation
from workers.data.preparation.discovery import examine
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.errors import DiskLow, InvalidDataset, Stopped
from workers.events import DatasetReady, Log, Split
from workers.files import disk_full_is_disk_low

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    return tmp_path / "work"


def prepare(spec: DatasetSpec, split: Split, root: Path) -> Dataset:
    return preparation.prepare(spec, split, root, root / "work")


def prepared_folders(work_dir: Path) -> list[Path]:
    return [path for path in work_dir.iterdir() if path.name != "sources"]


# -------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_with_every_fifth_of_each_class_for_test(tmp_path: Path) -> None:
    train, test = (prepare(DigitsDataset(), split, tmp_path) for split in ("train", "test"))
    published = load_digits()
    assert (train.samples, test.samples) == (1442, 355)
    assert train.images_NHWC.shape == (1442, 8, 8, 1)
    assert train.class_names == tuple("0123456789")
    for label in range(10):
        all_of_class = published.images[published.target == label]
        expected = np.floor(all_of_class * 255 / 16 + 0.5)[..., None]
        np.testing.assert_array_equal(test.images_NHWC[test.labels_N == label], expected[4::5])
        others = np.delete(expected, np.s_[4::5], axis=0)
        np.testing.assert_array_equal(train.images_NHWC[train.labels_N == label], others)


def test_digits_keep_the_published_order(tmp_path: Path) -> None:
    train = prepare(DigitsDataset(), "train", tmp_path)
    published = load_digits()
    # They hold three of each class.
    np.testing.assert_array_equal(train.labels_N[:30], published.target[:30])
    np.testing.assert_array_equal(train.images_NHWC[:30, ..., 0] == 255, published.images[:30] == 16)


def test_digits_with_few_labels_are_the_first_of_each_class(tmp_path: Path) -> None:
    whole, test = (prepare(DigitsDataset(), split, tmp_path) for split in ("train", "test"))
    spec = DigitsDataset(train_per_class=7)
    few, same_test = (prepare(spec, split, tmp_path) for split in ("train", "test"))
    assert few.samples == examine(spec, tmp_path).samples["train"] == 70
    for label in range(10):
        first = whole.images_NHWC[whole.labels_N == label][:7]
        np.testing.assert_array_equal(few.images_NHWC[few.labels_N == label], first)
    assert same_test.fingerprint == test.fingerprint
    assert few.fingerprint != whole.fingerprint
    # As many as the smallest class has, and no more.
    assert prepare(DigitsDataset(train_per_class=140), "train", tmp_path).samples == 1400
    with pytest.raises(ValidationError, match="less than or equal to 140"):
        DigitsDataset(train_per_class=141)
    # An Idempotency-Key is known by the digest of a dump, and one from before the field is to be known after.
    assert DigitsDataset().model_dump() == {"kind": "digits"}


# -------------------------------------------------------------------------------------------------- folder


def test_folder_is_decoded_in_class_and_name_order(tmp_path: Path) -> None:
    make_folder(tmp_path, ("dog", "ape", "cow"), pictures=11)
    train = prepare(FolderDataset(path="pets"), "train", tmp_path)
    assert train.class_names == ("ape", "cow", "dog")
    assert train.labels_N.dtype == np.int64
    assert train.labels_N.tolist() == [0] * 11 + [1] * 11 + [2] * 11
    # make_folder paints (index of the class as given, number of the picture, 0).
    numbers = sorted(range(11), key=lambda n: f"{n}.png")
    assert train.images_NHWC[:, 0, 0, 1].tolist() == numbers * 3
    assert train.images_NHWC[:, 3, 3, 0].tolist() == [1] * 11 + [2] * 11 + [0] * 11
    assert (train.images_NHWC == train.images_NHWC[:, :1, :1]).all()


def test_folder_larger_than_a_block_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, ("a", "b"), pictures=40)
    monkeypatch.setattr("workers.data.decoding.blocks.BLOCK_BYTES", 3 * 4 * 4 * 3)
    train = prepare(FolderDataset(path="pets"), "train", tmp_path)
    numbers = sorted(range(40), key=lambda n: f"{n}.png")
    assert train.images_NHWC[:, 0, 0, 1].tolist() == numbers * 2


def colour_bar() -> Image.Image:
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2
    return Image.fromarray(pixels, "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_read_picture_turns_every_8_bit_picture_into_rgb(tmp_path: Path, mode: str) -> None:
    folder = make_folder(tmp_path)
    for picture in folder.rglob("*.png"):
        picture.unlink()
        converted = colour_bar().convert(mode)
        converted.save(picture.with_suffix(".tiff" if mode == "CMYK" else ".png"))
    train = prepare(FolderDataset(path="pets"), "train", tmp_path)
    expected = np.asarray(colour_bar().convert(mode).convert("RGB"))
    assert train.images_NHWC.shape == (4, 6, 5, 3)
    assert (train.images_NHWC == expected).all()


@pytest.mark.parametrize("storage", ["decoded", "files"])
def test_prepare_names_a_damaged_picture_below_the_data_root(
    tmp_path: Path, storage: Literal["decoded", "files"]
) -> None:
    folder = make_folder(tmp_path / "root")
    spec = FolderDataset(path="pets", storage=storage)
    made = preparation.prepare(spec, "train", tmp_path / "root", tmp_path / "work")
    (folder / "train/cat/1.png").write_bytes(b"no picture")
    if storage == "files":
        with pytest.raises(InvalidDataset, match=r"^train/cat/1\.png has changed") as caught:
            made.take(np.arange(4))
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InvalidDataset, match=r"^pets/train/cat/1\.png cannot be read as a picture") as caught:
        preparation.prepare(spec, "train", tmp_path / "root", tmp_path / "work")
    assert str(tmp_path) not in str(caught.value)


def test_read_picture_turns_a_palette_with_transparency_into_rgb(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    picture = colour_bar().quantize(7)
    for path in folder.rglob("*.png"):
        picture.save(path, transparency=bytes(range(7)))
    train = prepare(FolderDataset(path="pets"), "train", tmp_path)
    assert (train.images_NHWC == np.asarray(picture.convert("RGB"))).all()


def test_read_picture_decodes_jpegs_as_pil_does(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for picture in folder.rglob("*.png"):
        picture.unlink()
        colour_bar().save(picture.with_suffix(".JPEG"), quality=80)
    train = prepare(FolderDataset(path="pets"), "train", tmp_path)
    with Image.open(folder / "train/cat/0.JPEG") as expected:
        assert (train.images_NHWC == np.asarray(expected)).all()


def truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-900])


def write_text(path: Path) -> None:
    path.write_text("no picture")


def write_16_bits(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(path)


def write_postscript(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, format="EPS")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated"),
        (write_text, "it begins with b'no picture', which is none of BMP, GIF"),
        (lambda path: path.write_bytes(b""), "it is empty, which is none of BMP, GIF"),
        (write_16_bits, "of the type I;16, only 8 bit"),
        (write_postscript, r"it begins with b'%!PS-Adobe.*', which is none of BMP"),
    ],
)
def test_prepare_names_an_unreadable_picture(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    picture = make_folder(tmp_path) / "train/dog/1.png"
    damage(picture)
    with pytest.raises(InvalidDataset, match=rf"train/dog/1\.png cannot be read as a picture: .*{message}"):
        prepare(FolderDataset(path="pets"), "train", tmp_path)
    assert prepared_folders(tmp_path / "work") == []


@pytest.mark.parametrize("storage", ["decoded", "files"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_prepare_names_damaged_pictures_up_to_ten_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Literal["decoded", "files"], blocks: int
) -> None:
    """Whichever block they are in, the very first picture included; no object of Python's is shown."""
    monkeypatch.setattr("workers.data.decoding.blocks.BLOCK_BYTES", 10_000 if blocks == 1 else 4 * 4 * 3 * 10)
    pictures = sorted((make_folder(tmp_path, pictures=14) / "train").rglob("*.png"))
    for picture in pictures[:13]:
        write_text(picture)
    Image.new("RGB", (5, 4)).save(pictures[-1])
    with pytest.raises(InvalidDataset, match=r"^14 of 28 pictures cannot be used: ") as caught:
        prepare(FolderDataset(path="pets", storage=storage), "train", tmp_path)
    message = str(caught.value)
    assert [str(picture.relative_to(tmp_path)) in message for picture in pictures] == [True] * 10 + [False] * 18
    assert message.endswith("; and 4 more")
    assert "object at" not in message
    assert prepared_folders(tmp_path / "work") == []


def test_prepare_names_ten_of_pictures_none_of_which_can_be_read(tmp_path: Path) -> None:
    for picture in (make_folder(tmp_path, pictures=6) / "train").rglob("*.png"):
        write_text(picture)
    with pytest.raises(InvalidDataset, match=r"^12 of 12 pictures cannot be used: .*; and 2 more$"):
        prepare(FolderDataset(path="pets"), "train", tmp_path)


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw"])
def test_read_picture_reports_a_damaged_tiff_in_its_error_and_not_on_standard_error(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where libtiff, and libjpeg by way of it, write lines that are no JSON."""
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "TIFF", compression=compression)
    refused = 0
    for at in range(8, 2008, 20):
        damaged = bytearray(whole.getvalue())
        damaged[at : at + 8] = bytes(8)
        try:
            decode_picture(bytes(damaged), Path("damaged.tif"), None)
        except InvalidDataset:
            refused += 1
    assert refused
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_prepare_refuses_pictures_of_several_sizes(tmp_path: Path, split: Split) -> None:
    folder = make_folder(tmp_path)
    Image.new("RGB", (5, 4)).save(folder / split / "dog/1.png")
    with pytest.raises(InvalidDataset, match=r"dog/1\.png is 4 x 5 pixels .* 4 x 4: give image_size"):
        prepare(FolderDataset(path="pets"), split, tmp_path)


def test_prepare_resizes_every_picture_to_image_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    colour_bar().resize((50, 40)).save(folder / "train/dog/1.png")
    train = prepare(FolderDataset(path="pets", image_size=(6, 9)), "train", tmp_path)
    assert (train.height, train.width) == (6, 9)
    with Image.open(folder / "train/dog/1.png") as picture:
        expected = np.asarray(picture.resize((9, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(train.images_NHWC[3], expected)
    assert (train.images_NHWC[2] == (1, 0, 0)).all()


def test_prepare_reports_files_left_out(tmp_path: Path, work_dir: Path) -> None:
    (make_folder(tmp_path) / "train/dog/notes.txt").write_text("hello")
    events: list[object] = []
    preparation.prepare(FolderDataset(path="pets"), "train", tmp_path, work_dir, events.append)
    warnings = [event for event in events if isinstance(event, Log) and event.level == "warning"]
    assert len(warnings) == 1
    assert "1 files are not pictures" in warnings[0].message
    assert "notes.txt" in warnings[0].message
    assert str(tmp_path) not in warnings[0].message


# ----------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_npz_is_read_as_it_is(tmp_path: Path, channels: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 4, 5, *channels), dtype=np.uint8)
    test_images = generator.integers(0, 256, (3, 4, 5, *channels), dtype=np.uint8)
    make_npz(tmp_path / "a.npz", train_images=np.asfortranarray(images), test_images=test_images)
    train, test = (prepare(NpzDataset(path="a.npz"), split, tmp_path) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images_NHWC, images.reshape(6, 4, 5, -1))
    np.testing.assert_array_equal(test.images_NHWC, test_images.reshape(3, 4, 5, -1))
    assert train.labels_N.tolist() == [0, 1, 2, 2, 1, 0]
    assert test.labels_N.tolist() == [2, 0, 1]
    assert (train.classes, train.class_names, train.split) == (3, ("0", "1", "2"), "train")
    assert (test.samples, test.height, test.width, test.channels) == (3, 4, 5, 3 if channels == (3,) else 1)


@pytest.mark.parametrize(
    ("changed", "split", "message"),
    [
        ({"train_labels": np.array([0, 1, 3, 3, 1, 0])}, "train", r"test_labels holds the label 2, which no training"),
        ({"train_labels": np.array([0, 1, 3, 3, 1, 0])}, "test", r"those are 0, 1, 3"),
        ({"class_names": np.array(["a", "b", "c", "d"])}, "train", r"class 3 \('d'\) has no training picture \(1 of"),
        ({"class_names": np.array(["a", "b"])}, "train", r"train_labels holds the label 2; labels are 0..1"),
        ({"train_labels": np.array([0, 1, 2, -2, 1, 0])}, "train", r"holds the label -2; labels are 0..2"),
        ({"test_labels": np.array([0, 1, 3])}, "test", r"test_labels holds the label 3; labels are 0..2"),
        ({"train_labels": np.full(6, 10**9)}, "train", r"all 6 training labels are 1000000000: at least two"),
        ({"train_labels": np.zeros(6, int)}, "train", r"all 6 training labels are 0: at least two"),
        ({"train_labels": np.array([1, 2, 3, 3, 2, 1])}, "train", r"test_labels holds the label 0, which no training"),
    ],
)
def test_labels_of_no_training_picture_or_out_of_range_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], split: Split, message: str
) -> None:
    make_npz(tmp_path / "a.npz", **changed)
    with pytest.raises(InvalidDataset, match=message):
        prepare(NpzDataset(path="a.npz"), split, tmp_path)
    with pytest.raises(InvalidDataset, match=message):  # before anything is decoded, and by the same check
        examine(NpzDataset(path="a.npz"), tmp_path)


class Bomb:
    """Pickled, it would create the file that its argument names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    labels = np.array([Bomb(tmp_path / "exploded")] * 6, dtype=object)
    make_npz(tmp_path / "a.npz", train_labels=labels)
    with pytest.raises(InvalidDataset, match="train_labels is object"):
        prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    make_npz(tmp_path / "b.npz", class_names=labels)
    with pytest.raises(InvalidDataset, match="class_names is object"):
        prepare(NpzDataset(path="b.npz"), "train", tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_npz_is_decoded_a_block_at_a_time(tmp_path: Path) -> None:
    """Packed a thousand to one, 48 MB are a file of 50 kB."""
    make_npz(tmp_path / "a.npz", train_images=np.zeros((6, 2000, 4000), np.uint8), test_images=None)
    make_npz(tmp_path / "b.npz", test_images=np.zeros((3, 2000, 4000), np.uint8), train_images=None)
    arrays = {**np.load(tmp_path / "b.npz"), **np.load(tmp_path / "a.npz")}
    np.savez_compressed(tmp_path / "c.npz", **arrays)
    del arrays
    tracemalloc.start()
    try:
        spec = NpzDataset(path="c.npz")
        made = spec.decode(examine(spec, tmp_path), "train", lambda: False)
        assert [block.shape for block in made.blocks] == [(1, 2000, 4000, 1)] * 6
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def png_of_zeros(path: Path, width: int, height: int) -> None:
    """Grey, of one bit a pixel, packed a thousand to one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_read_picture_refuses_too_many_pixels_or_bytes_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    picture = folder / "train/cat/1.png"
    png_of_zeros(picture, 9000, 9000)
    with pytest.raises(
        InvalidDataset, match=r"1\.png .* 9000 x 9000 pixels \(width x height\), at most 67108864 in all"
    ):
        prepare(FolderDataset(path="pets", image_size=(4, 4)), "train", tmp_path)
    with picture.open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    with pytest.raises(InvalidDataset, match=r"1\.png has 268435457 bytes, and a picture may have at most 268435456"):
        prepare(FolderDataset(path="pets", image_size=(4, 4)), "train", tmp_path)


def test_read_blocks_decodes_few_blocks_of_large_pictures_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are bytes for, not as many as there are processors."""
    make_folder(tmp_path, pictures=20)
    waiting, most = 0, 0
    made = picture_blocks._block

    def counting(*arguments: object) -> object:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return made(*arguments)

    monkeypatch.setattr(picture_blocks, "_block", counting)
    monkeypatch.setattr(picture_blocks.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(block_module, "BLOCK_BYTES", 48)
    monkeypatch.setattr(picture_blocks, "_AHEAD_BYTES", 3 * 48)
    source = examine(FolderDataset(path="pets"), tmp_path)
    blocks = source.spec.decode(source, "train", lambda: False).blocks
    for _ in blocks:
        waiting -= 1
    assert most <= 4


def test_npz_with_flipped_bits_is_refused(tmp_path: Path) -> None:
    images = np.zeros((6, 80, 100), dtype=np.uint8)
    path = make_npz(tmp_path / "a.npz", train_images=images, test_images=images[:3])
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("train_images.npy").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 40_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidDataset, match=r"a\.npz: train_images cannot be read: Bad CRC"):
        prepare(NpzDataset(path="a.npz"), "train", tmp_path)


# --------------------------------------------------------------------------------------------- MNIST, CIFAR


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_raw_and_compressed(tmp_path: Path, suffix: str) -> None:
    make_mnist(tmp_path / "FashionMNIST/raw", suffix)
    spec = TorchvisionDataset(kind="fashion_mnist")
    train, test = (prepare(spec, split, tmp_path) for split in ("train", "test"))
    expected = (np.arange(30 * 30) % 251).reshape(30, 5, 6, 1)
    np.testing.assert_array_equal(train.images_NHWC, expected)
    np.testing.assert_array_equal(test.images_NHWC, expected[:10])
    assert train.labels_N.tolist() == [*range(10)] * 3
    assert train.class_names[-1] == "Ankle boot"


def test_idx_files_that_end_early_or_late_are_refused(tmp_path: Path) -> None:
    make_mnist(tmp_path, ".gz")
    images = tmp_path / "train-images-idx3-ubyte.gz"
    good = gzip.decompress(images.read_bytes())
    for bad, message in (
        (gzip.compress(good[:-1]), "ends after 29 of 30 rows"),
        (gzip.compress(good + b"x"), "is longer than its header says"),
        (gzip.compress(good)[:-9], "cannot be read"),
    ):
        images.write_bytes(bad)
        with pytest.raises(InvalidDataset, match=message):
            prepare(TorchvisionDataset(kind="mnist"), "train", tmp_path)


def test_idx_labels_must_be_digits_and_all_present(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    make_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(1, 11))
    with pytest.raises(InvalidDataset, match=r"t10k-labels-idx1-ubyte holds the label 10; labels are 0..9"):
        prepare(TorchvisionDataset(kind="mnist"), "test", tmp_path)
    with pytest.raises(InvalidDataset, match=r"t10k-labels-idx1-ubyte holds the label 10; labels are 0..9"):
        examine(TorchvisionDataset(kind="mnist"), tmp_path)
    make_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(30) % 7)
    with pytest.raises(InvalidDataset, match=r"class 7 \('7'\) has no training picture \(3 of 10"):
        prepare(TorchvisionDataset(kind="mnist"), "train", tmp_path)


def make_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four batches in the published layout, and torchvision told that their MD5 are the published ones."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 200), ("test", 100)):
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": data, "fine_labels": [n % 100 for n in range(count)]}
        (folder / name).write_bytes(old_pickle(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {n}" for n in range(100)]}))
    digests = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", digests["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", digests["test"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": digests["meta"]})
    return folder


def old_pickle(content: object) -> bytes:
    """As the published files were written: an old NumPy said 0 and 1 where this one says False and True.

    NumPy 2.4.0 to 2.4.4 warn about that, so this also notices a NumPy that does.
    """
    data = pickle.dumps(content, protocol=2)
    assert data.count(b"\x89\x88\x87") == 1
    return data.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def test_cifar_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_cifar(tmp_path, monkeypatch)
    published = pickle.loads((folder / "train").read_bytes())["data"]
    for path in (".", "cifar-100-python"):
        train = prepare(TorchvisionDataset(kind="cifar100", path=path), "train", tmp_path)
        assert train.images_NHWC.shape == (200, 32, 32, 3)
        np.testing.assert_array_equal(train.images_NHWC.transpose(0, 3, 1, 2).reshape(200, -1), published)
        assert train.labels_N.tolist() == [*range(100)] * 2
        assert train.class_names[99] == "class 99"
    test = prepare(TorchvisionDataset(kind="cifar100"), "test", tmp_path)
    assert test.samples == 100


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_cifar_files_that_are_not_the_published_ones_are_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = make_cifar(tmp_path, monkeypatch)
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InvalidDataset, match=rf"cifar-100-python/{name} has the MD5 .*, the published file has"):
        prepare(TorchvisionDataset(kind="cifar100"), "train", tmp_path)
    assert not (tmp_path / "exploded").exists()


# -------------------------------------------------------------------------------------------------- identity


def test_fingerprint_is_the_documented_hash(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz")
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    header = b'{"class_names":["0","1","2"],"format":"retort-dataset-1","shape":[6,4,5,1],"split":"train"}\n'
    labels = np.array([0, 1, 2, 2, 1, 0], dtype="<i8").tobytes()
    expected = hashlib.sha256(header + bytes(range(120)) + labels).hexdigest()
    assert train.fingerprint == expected
    assert train.path.name == expected


def test_fingerprint_of_the_same_content_from_another_source_is_the_same(tmp_path: Path, work_dir: Path) -> None:
    make_folder(tmp_path)
    spec = FolderDataset(path="pets")
    train, test = (prepare(spec, split, tmp_path) for split in ("train", "test"))
    np.savez_compressed(
        tmp_path / "a.npz",
        train_images=train.images_NHWC,
        train_labels=train.labels_N.astype(np.uint8),
        test_images=test.images_NHWC,
        test_labels=test.labels_N,
        class_names=np.array(["cat", "dog"]),
    )
    again = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    assert again.fingerprint == train.fingerprint
    # Equal pictures in both splits are still two splits.
    assert test.fingerprint != train.fingerprint
    assert sorted(prepared_folders(work_dir)) == sorted([train.path, test.path])


def test_fingerprint_changes_with_every_part_of_the_content(tmp_path: Path) -> None:
    images = np.arange(120, dtype=np.uint8).reshape(6, 4, 5)
    other_pixel = images.copy()
    other_pixel[5, 3, 4] += 1
    variants: list[dict[str, np.ndarray]] = [
        {},
        {"train_images": other_pixel},
        {"train_images": images[::-1]},
        {"train_images": images.reshape(6, 5, 4), "test_images": np.zeros((3, 5, 4), np.uint8)},
        {"train_labels": np.array([0, 1, 2, 2, 0, 1])},
        {"class_names": np.array(["a", "b", "c"])},
    ]
    fingerprints = set()
    for number, changed in enumerate(variants):
        make_npz(tmp_path / f"{number}.npz", **changed)
        fingerprints.add(prepare(NpzDataset(path=f"{number}.npz"), "train", tmp_path).fingerprint)
    assert len(fingerprints) == len(variants)


def test_prepare_computes_mean_and_std_of_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
    images[..., 2] = 255
    make_npz(tmp_path / "a.npz", train_images=images, train_labels=np.arange(50) % 3, test_images=images[:3])
    monkeypatch.setattr("workers.data.decoding.blocks.BLOCK_BYTES", 7 * 4 * 5 * 3)
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    np.testing.assert_allclose(train.channel_mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(train.channel_std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    assert (train.channel_mean[2], train.channel_std[2]) == (1.0, 0.0)


# ------------------------------------------------------------------------------------------- reuse, atomicity


def readies(events: list[object]) -> list[bool]:
    return [event.reused for event in events if isinstance(event, DatasetReady)]


def test_prepare_maps_without_decoding_at_a_second_call(tmp_path: Path, work_dir: Path) -> None:
    picture, spec = make_folder(tmp_path) / "train/cat/0.png", FolderDataset(path="pets")
    events: list[object] = []
    first = preparation.prepare(spec, "train", tmp_path, work_dir, events.append)
    status = picture.stat()
    picture.write_bytes(b"x" * status.st_size)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = preparation.prepare(spec, "train", tmp_path, work_dir, events.append)
    assert second.fingerprint == first.fingerprint
    assert readies(events) == [False, True]
    ready = next(event for event in events if isinstance(event, DatasetReady))
    assert (ready.split, ready.samples, ready.classes) == ("train", 4, 2)
    assert ready.fingerprint == first.fingerprint


def test_prepare_decodes_a_changed_source_again(tmp_path: Path) -> None:
    folder, spec = make_folder(tmp_path), FolderDataset(path="pets")
    first = prepare(spec, "train", tmp_path)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "train/cat/0.png")
    second = prepare(spec, "train", tmp_path)
    assert second.fingerprint != first.fingerprint
    assert (second.images_NHWC[0] == 9).all()
    assert (first.images_NHWC[0] == 0).all()


def cut_images(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(200)


def cut_labels(folder: Path) -> None:
    with (folder / "labels.npy").open("ab") as file:
        file.write(b"x")


def remove_labels(folder: Path) -> None:
    (folder / "labels.npy").unlink()


def cut_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def other_format(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 0}))


def cut_pointer(folder: Path) -> None:
    for pointer in (folder.parent / "sources").glob("*.json"):
        pointer.write_text("")


DAMAGES = [cut_images, cut_labels, remove_labels, cut_meta, empty, other_format]


@pytest.mark.parametrize("damage", [*DAMAGES, shutil.rmtree, cut_pointer], ids=lambda d: d.__name__)
def test_prepare_makes_a_damaged_copy_again(tmp_path: Path, work_dir: Path, damage: Callable[[Path], None]) -> None:
    make_npz(tmp_path / "a.npz")
    spec = NpzDataset(path="a.npz")
    first = prepare(spec, "train", tmp_path)
    damage(first.path)
    events: list[object] = []
    second = preparation.prepare(spec, "train", tmp_path, work_dir, events.append)
    assert readies(events) == [False]
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.images_NHWC.ravel(), np.arange(120))
    assert prepared_folders(work_dir) == [first.path]


@pytest.mark.parametrize("damage", [*DAMAGES, shutil.rmtree], ids=lambda d: d.__name__)
def test_open_prepared_refuses_a_damaged_copy(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make_npz(tmp_path / "a.npz")
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    damage(train.path)
    with pytest.raises(InvalidDataset, match=rf"{train.fingerprint} cannot be used .*; prepare it again"):
        open_prepared(tmp_path / "work", train.fingerprint)


@pytest.mark.parametrize("fingerprint", ["", "../work", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_open_prepared_takes_fingerprints_alone(tmp_path: Path, fingerprint: str) -> None:
    with pytest.raises(InvalidDataset, match="is not a fingerprint"):
        open_prepared(tmp_path, fingerprint)


def test_dataset_can_be_given_to_torch_and_never_changes_its_files(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz")
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    before = (train.path / "images.npy").read_bytes()
    assert isinstance(train.images_NHWC, np.memmap)
    torch.from_numpy(train.images_NHWC).fill_(7)
    assert (train.path / "images.npy").read_bytes() == before
    assert open_prepared(tmp_path / "work", train.fingerprint).images_NHWC[0, 0, 1, 0] == 1


def test_dataset_pickles_as_its_path(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz")
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    data = pickle.dumps(train)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.fingerprint == train.fingerprint
    np.testing.assert_array_equal(again.images_NHWC, train.images_NHWC)


def test_prepare_by_many_at_once_decodes_once_and_all_map(tmp_path: Path, work_dir: Path) -> None:
    make_folder(tmp_path, pictures=20)
    events: list[object] = []
    everybody = threading.Barrier(6)

    def work(number: int) -> str:
        everybody.wait()
        split: Split = "train" if number % 2 else "test"
        return preparation.prepare(FolderDataset(path="pets"), split, tmp_path, work_dir, events.append).fingerprint

    with ThreadPoolExecutor(6) as pool:
        fingerprints = list(pool.map(work, range(6)))
    assert len(set(fingerprints)) == 2
    assert sorted(readies(events)) == [False, False, True, True, True, True]
    assert {path.name for path in prepared_folders(work_dir)} == set(fingerprints)


def test_prepare_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, pictures=20)
    make_npz(tmp_path / "a.npz")
    make_mnist(tmp_path)
    monkeypatch.setattr("workers.data.decoding.blocks.BLOCK_BYTES", 100)
    specs: list[DatasetSpec] = [FolderDataset(path="pets"), NpzDataset(path="a.npz"), TorchvisionDataset(kind="mnist")]
    for spec in specs:
        answers = iter([False, True])
        with pytest.raises(Stopped, match="while decoding"):
            preparation.prepare(spec, "train", tmp_path, work_dir, should_stop=lambda: next(answers))  # noqa: B023  # called in this turn
        assert prepared_folders(work_dir) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_prepare_that_waits_for_another_process_can_be_stopped(tmp_path: Path, work_dir: Path) -> None:
    make_npz(tmp_path / "a.npz")
    spec = NpzDataset(path="a.npz")
    decoding, finish = threading.Event(), threading.Event()

    def first_stops() -> bool:
        decoding.set()
        assert finish.wait(60)
        return False

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(preparation.prepare, spec, "train", tmp_path, work_dir, should_stop=first_stops)
        assert decoding.wait(60)
        with pytest.raises(Stopped, match="while another process prepares"):
            preparation.prepare(spec, "train", tmp_path, work_dir, should_stop=lambda: True)
        finish.set()
        assert first.result().samples == 6


KILLED = """
import sys, threading
from pathlib import Path
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import prepare as preparation

calls = []
def should_stop():
    calls.append(1)
    if len(calls) == 2:
        print("half", flush=True)
        threading.Event().wait()
    return False

root = Path(sys.argv[1])
import workers.data.decoding.blocks
workers.data.decoding.blocks.BLOCK_BYTES = 60
preparation.prepare(NpzDataset(path="a.npz"), "train", root, root / "work", should_stop=should_stop)
"""


def test_prepare_that_is_killed_leaves_nothing_that_matters(tmp_path: Path, work_dir: Path) -> None:
    make_npz(tmp_path / "a.npz")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert [path.name.startswith(".partial-") for path in prepared_folders(work_dir)] == [True]
    train = prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    np.testing.assert_array_equal(train.images_NHWC.ravel(), np.arange(120))
    assert prepared_folders(work_dir) == [train.path]


# --------------------------------------------------------------------------------------------------- disk full


def test_prepare_notices_too_little_room_before_decoding(
    tmp_path: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_npz(tmp_path / "a.npz")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskLow, match=r"has 1,000 bytes free, the decoded dataset needs 168"):
        prepare(NpzDataset(path="a.npz"), "train", tmp_path)
    assert prepared_folders(work_dir) == []


def test_disk_full_is_disk_low_for_a_disk_that_runs_full(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskLow, match=r"the disk of .* ran full while writing a dataset"),
        disk_full_is_disk_low(tmp_path, "a dataset"),
    ):
        Path("/dev/full").write_bytes(b"x")


def test_disk_full_is_disk_low_leaves_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_full_is_disk_low(tmp_path, "a dataset"):
        raise PermissionError(errno.EACCES, "no")
