"""Reading one split of a source as uint8 pictures and int64 labels, block by block, in a fixed order.

The order of the samples is part of a data set's identity (cached logits are joined by position):
files as published for CIFAR and MNIST, array order for ``.npz``, class name then file name for
folders, scikit-learn's order for the digits.

Pictures of a folder are decoded by PIL to RGB, grey and palette ones included; EXIF orientation is
not applied and transparency is dropped, as torchvision's ``ImageFolder`` does. Pictures that would
lose values silently (16 and 32 bits) are refused. With ``image_size`` they are resized by PIL's
bilinear filter, which smooths when it shrinks: photographs are shrunk a lot, and once. (``views.resize``
does not smooth; it serves small changes of pictures that are prepared already.) What PIL makes of a file
is what its pixels are; another decoder may only be faster.

One exception to "nothing is unpickled": torchvision unpickles the published CIFAR archives. That
happens only after every file matched its published MD5, so only the authors' bytes are unpickled:
a forgery would need a second preimage, which nobody can make for MD5.

scikit-learn and torchvision are imported where they are used: each takes seconds, and every process
that maps prepared data imports this module.

Legend: N samples, b samples of a block, H x W pixels, C channels.
"""

import contextlib
import ctypes
import hashlib
import io
import math
import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from workers.config.dataset import DigitsDataset, FolderDataset, NpzDataset, TorchvisionDataset
from workers.data.discovery import TEN_DIGITS, Source
from workers.data.headers import idx_pieces, idx_shape, npz_headers, npz_pieces
from workers.data.labels import Labels, check_labels, idx_labels, npz_labels
from workers.errors import InvalidDataset, Stopped
from workers.events import ShouldStop, Split
from workers.texts import shortened

# Named, so that a file is never handed to a decoder that runs programs (PIL's EPS calls Ghostscript).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

# Start of a frame that is neither baseline nor progressive with Huffman codes, or of tables for one.
_RARE_JPEG = re.compile(rb"\xff[\xc3\xc5-\xc7\xc9-\xcf]")

# libtiff, and the libjpeg in it, tell standard error of every damaged file, in lines of their own form beside the JSON
# of this process. PIL raises for them as well, and switches off the warnings alone. The symbol is looked for in the
# libraries that PIL's own needs, too; a PIL without libtiff opens no such file.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

# Of a picture: 201 MB as RGB, and as much again while it is converted. A file of as many bytes holds one unpacked.
PIXELS_MAX = 1 << 26
FILE_MAX_BYTES = 256 << 20

# Bytes of one block: small enough that stopping is prompt and a pool holds several.
_BLOCK_BYTES = 8 << 20

# Of blocks that are being decoded or wait, all together; one or two larger ones are.
_AHEAD_BYTES = 512 << 20

# Damaged pictures that a message names.
_NAMED_MAX = 10

Pictures = NDArray[np.uint8]
Blocks = Generator[Pictures, None, None]


@dataclass(frozen=True)
class Decoding:
    """A split of which everything is known but the pixels, which ``blocks`` reads.

    Attributes:
        shape: (N, H, W, C).
        labels_N: int64, 0..classes-1.
        class_names: in label order.
        blocks: uint8 [b, H, W, C], in sample order, N in all; can be iterated once. Raises
            InvalidDataset if pictures cannot be read, naming ten at most, Stopped when asked to stop.
    """

    shape: tuple[int, int, int, int]
    labels_N: Labels
    class_names: tuple[str, ...]
    blocks: Blocks


def decode(source: Source, split: Split, should_stop: ShouldStop) -> Decoding:
    """Begin to read a split.

    Raises:
        InvalidDataset: unreadable, of several sizes, or with labels that are not 0..classes-1 with
            every class in the training split.
    """
    match source.spec:
        case DigitsDataset():
            return _digits(source.spec, split, should_stop)
        case TorchvisionDataset(kind="cifar10" | "cifar100"):
            return _cifar(source, split, should_stop)
        case TorchvisionDataset():
            return _idx(source, split, should_stop)
        case FolderDataset():
            return _folder(source, source.spec, split, should_stop)
        case NpzDataset():
            return _npz(source, split, should_stop)


def _from_array(images_NHWC: Pictures, labels_N: Labels, names: Sequence[str], should_stop: ShouldStop) -> Decoding:
    count, height, width, channels = images_NHWC.shape
    step = _block_rows(height * width * channels)

    def blocks() -> Blocks:
        for start in range(0, count, step):
            _check_stop(should_stop)
            yield np.ascontiguousarray(images_NHWC[start : start + step])

    return Decoding((count, height, width, channels), labels_N, tuple(names), blocks())


def _stoppable(blocks: Iterable[Pictures], should_stop: ShouldStop) -> Blocks:
    for block in blocks:
        _check_stop(should_stop)
        yield block


def _block_rows(row_bytes: int) -> int:
    return max(1, _BLOCK_BYTES // row_bytes)


def _check_stop(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("stopped while decoding a data set; the half-made copy is removed")


# ------------------------------------------------------------------------------------------ digits


def _digits(spec: DigitsDataset, split: Split, should_stop: ShouldStop) -> Decoding:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    # 0..16 to 0..255, rounded half up.
    images = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    # Every fifth of each class, not every fifth of all: the file mostly runs 0, 1, ..., 9 again and
    # again, so the latter would be a test split of fours and nines.
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    chosen = is_test if split == "test" else ~is_test
    if split == "train" and spec.train_per_class is not None:
        for label in range(10):
            chosen[np.flatnonzero(chosen & (labels == label))[spec.train_per_class :]] = False
    return _from_array(images[chosen], labels[chosen], TEN_DIGITS, should_stop)


# ------------------------------------------------------------------------------------------- CIFAR


def _cifar(source: Source, split: Split, should_stop: ShouldStop) -> Decoding:
    from torchvision.datasets import CIFAR10, CIFAR100

    folder = source.files[split][0].parent
    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[source.spec.kind]
    _check_md5(folder, published)
    data = published(str(folder.parent), train=split == "train")
    labels = np.asarray(data.targets, dtype=np.int64)
    check_labels(labels, len(data.classes), folder)
    return _from_array(data.data, labels, data.classes, should_stop)


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


# --------------------------------------------------------------------------- MNIST, Fashion-MNIST


def _idx(source: Source, split: Split, should_stop: ShouldStop) -> Decoding:
    images_path, names = source.files[split][0], source.class_names or ()
    labels = idx_labels({part: files[1] for part, files in source.files.items()}, names)
    count, height, width = idx_shape(images_path)
    shape = (count, height, width, 1)
    step = _block_rows(height * width)
    blocks = (piece[..., None] for piece in idx_pieces(images_path, step))
    return Decoding(shape, labels[split], names, _stoppable(blocks, should_stop))


# --------------------------------------------------------------------------------------------- npz


def _npz(source: Source, split: Split, should_stop: ShouldStop) -> Decoding:
    path, name = source.files[split][0], f"{split}_images"
    count, height, width, *channels = npz_headers(path, [name])[name].shape
    shape = (count, height, width, channels[0] if channels else 1)
    step = _block_rows(math.prod(shape[1:]))
    names = source.class_names or ()
    blocks = (np.ascontiguousarray(piece).reshape(-1, *shape[1:]) for piece in npz_pieces(path, name, step))
    return Decoding(shape, npz_labels(path, names)[split], names, _stoppable(blocks, should_stop))


# ------------------------------------------------------------------------------------------ folder


def _folder(source: Source, spec: FolderDataset, split: Split, should_stop: ShouldStop) -> Decoding:
    files, names = source.files[split], source.class_names or ()
    labels = np.repeat(np.arange(len(names), dtype=np.int64), source.class_counts[split])
    size = spec.image_size or _first_size(source.files["train"], should_stop)
    shape = (len(files), *size, 3)
    return Decoding(shape, labels, names, _folder_blocks(files, spec, size, should_stop))


def _first_size(files: Sequence[Path], should_stop: ShouldStop) -> tuple[int, int]:
    """(height, width) of the first training picture, which both splits must have; damaged ones are told later."""
    damages = _Damages(len(files))
    for path in files:
        _check_stop(should_stop)
        try:
            height, width, _ = _picture(path, None).shape
        except InvalidDataset as error:
            damages.add([str(error)])
        else:
            return height, width
    raise damages.error()


class _Damages:
    """The pictures of so many that cannot be used: the first are named, all counted."""

    def __init__(self, pictures: int) -> None:
        self.count = 0
        self._pictures = pictures
        self._named: list[str] = []

    def add(self, sentences: Sequence[str]) -> None:
        self.count += len(sentences)
        self._named += sentences[: _NAMED_MAX - len(self._named)]

    def error(self) -> InvalidDataset:
        if self.count == 1:
            return InvalidDataset(self._named[0])
        more = f"; and {self.count - _NAMED_MAX} more" if self.count > _NAMED_MAX else ""
        return InvalidDataset(
            f"{self.count} of {self._pictures} pictures cannot be used: {'; '.join(self._named)}{more}"
        )


def _folder_blocks(
    files: Sequence[Path], spec: FolderDataset, size: tuple[int, int], should_stop: ShouldStop
) -> Blocks:
    """Every block, up to the first picture that is damaged; then the others are decoded to tell of all that are."""
    damages = _Damages(len(files))
    with contextlib.closing(_decoded(files, spec, size, should_stop)) as decoded:
        for block, found in decoded:
            damages.add(found)
            if not damages.count:
                yield block
    if damages.count:
        raise damages.error()


def _decoded(
    files: Sequence[Path], spec: FolderDataset, size: tuple[int, int], should_stop: ShouldStop
) -> Generator[tuple[Pictures, list[str]], None, None]:
    """Results of ``_pictures``, from threads (PIL releases the interpreter lock), a bounded number of blocks ahead."""
    row_bytes = math.prod(size) * 3
    step = min(256, _block_rows(row_bytes))
    blocks_max = max(1, _AHEAD_BYTES // (step * row_bytes))
    threads = min(len(os.sched_getaffinity(0)), blocks_max)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[tuple[Pictures, list[str]]]] = deque()
    try:
        for start in range(0, len(files), step):
            _check_stop(should_stop)
            pending.append(pool.submit(_pictures, files[start : start + step], spec, size))
            if len(pending) > min(2 * threads, blocks_max):
                yield pending.popleft().result()
        while pending:
            _check_stop(should_stop)
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pictures(files: Sequence[Path], spec: FolderDataset, size: tuple[int, int]) -> tuple[Pictures, list[str]]:
    """uint8 [b, H, W, 3], and a sentence for each picture that could not be had."""
    block = np.empty((len(files), *size, 3), dtype=np.uint8)
    damages = []
    for row, path in zip(block, files, strict=True):
        try:
            picture = _picture(path, spec.image_size)
        except InvalidDataset as error:
            damages.append(str(error))
            continue
        if picture.shape == row.shape:
            row[:] = picture
        else:
            damages.append(
                f"{path} is {picture.shape[0]} x {picture.shape[1]} pixels (height x width), the first "
                f"training picture {size[0]} x {size[1]}: give image_size to resize all"
            )
    return block, damages


def _picture(path: Path, size: tuple[int, int] | None) -> Pictures:
    """One file as uint8 [H, W, 3], resized to (height, width) if given."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read as a picture: {error}") from error
    if len(data) > FILE_MAX_BYTES:
        raise InvalidDataset(
            f"{path} has {path.stat().st_size} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it smaller"
        )
    return decode_picture(data, path, size)


def decode_picture(data: bytes, path: Path, size: tuple[int, int] | None) -> Pictures:
    """The content of the file ``path`` as uint8 [H, W, 3], resized to (height, width) if given.

    Whoever decodes a picture does it here, so that all get the same bits.

    Raises:
        InvalidDataset: it is damaged, or no picture of 8 bits a channel.
    """
    try:
        # From memory: PIL's many short reads of an open file cost as much again as small pictures do.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > PIXELS_MAX:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels (width x height), at most {PIXELS_MAX} in all are "
                    "decoded: make it smaller"
                )
            if image.mode not in _MODES:
                raise ValueError(f"its pixels are of the type {image.mode}, only 8 bit ones are supported")
            if size is None and (pixels := _jpeg_pixels(data, image)) is not None:
                return pixels
            # Straight to RGB, PIL would warn about palettes with transparency.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            # Converted to its own mode, it would be copied.
            picture = opaque if opaque.mode == "RGB" else opaque.convert("RGB")
            if size is not None:
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        # PIL would name the memory that it has read it from.
        what = f"it begins with {data[:16]!r}" if data else "it is empty"
        formats = ", ".join(_FORMATS)
        raise InvalidDataset(f"{path} cannot be read as a picture: {what}, which is none of {formats}") from None
    except Exception as error:
        # A damaged file makes PIL's decoders raise nearly anything (OSError, SyntaxError, KeyError ...).
        raise InvalidDataset(f"{path} cannot be read as a picture: {shortened(error)}") from error


def _jpeg_pixels(data: bytes, image: ImageFile.ImageFile) -> Pictures | None:
    """The pixels of an opened JPEG as PIL would decode it, in half to three quarters of the time; else None.

    Both use libjpeg-turbo with the same settings. Left to PIL is what they may see differently: four channels, whose
    meaning PIL guesses; arithmetic coding, which PIL decodes in small files only; lossless and hierarchical frames; and
    every file about which the library has so much as a warning, for PIL ignores some of them and refuses others.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or image.fp is None:
        return None
    # PIL has read it up to the first scan.
    if _RARE_JPEG.search(data, 0, image.fp.tell()):
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None
