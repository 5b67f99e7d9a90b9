"""Decoding of one image file to RGB.

Pictures are decoded by PIL to RGB, grey and palette ones included; transparency is dropped, and EXIF orientation is not
applied unless asked for, as torchvision's ``ImageFolder`` does. Pictures that would lose values silently (16 and 32
bits) are refused. With a size they are resized by PIL's bilinear filter, which smooths when it shrinks: photographs are
shrunk a lot, and once. (``workers.augmentation.apply.resize`` does not smooth; it serves small changes of pictures that
are prepared already.) What PIL makes of a file is what its pixels are; another decoder may only be faster.

Legend: H x W pixels.
"""

import contextlib
import ctypes
import io
import re
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from workers.data.decoding.blocks import Pictures
from workers.errors import InvalidDataset
from workers.texts import shortened

# Named, so that a file is never handed to a decoder that runs programs (PIL's EPS calls Ghostscript).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

# Of the EXIF tag 0x0112: how the stored pixels have to be turned to be upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Start of a frame that is neither baseline nor progressive with Huffman codes, or of tables for one.
_RARE_JPEG = re.compile(rb"\xff[\xc3\xc5-\xc7\xc9-\xcf]")

# libtiff, and the libjpeg in it, write every damaged file to standard error, in lines of their own form beside the JSON
# of this process. PIL raises for them as well, and switches off the warnings alone. The symbol is looked for in the
# libraries that PIL's own needs, too; a PIL without libtiff opens no such file.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

# Of a picture: 201 MB as RGB, and as much again while it is converted. A file of as many bytes holds one unpacked.
PIXELS_MAX = 1 << 26
FILE_MAX_BYTES = 256 << 20


def read_file(path: Path) -> bytes:
    """Content of an image file.

    Raises:
        InvalidDataset: it is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise InvalidDataset(
            f"{path} has {path.stat().st_size} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it smaller"
        )
    return data


def decode_picture(
    data: bytes, path: Path | str, size: tuple[int, int] | None, *, exif_orientation: bool = False
) -> Pictures:
    """Decode the content of the file ``path``: uint8 [H, W, 3], resized to (height, width) if given.

    Every picture is decoded here, so that all processes get the same bits.

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
            turn = _turn(image) if exif_orientation else None
            if size is None and turn is None and (pixels := _jpeg_pixels(data, image)) is not None:
                return pixels
            # Straight to RGB, PIL would warn about palettes with transparency.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            # Converted to its own mode, it would be copied.
            picture = opaque if opaque.mode == "RGB" else opaque.convert("RGB")
            if turn is not None:
                picture = picture.transpose(turn)
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
        ends_early = " (the file ends before its picture does)" if "truncated" in str(error).lower() else ""
        raise InvalidDataset(f"{path} cannot be read as a picture: {shortened(error)}{ends_early}") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Transposition that makes a picture upright; None where it is, or where its EXIF data cannot be read."""
    # EXIF data is parsed only here, and a stranger's may make that raise nearly anything.
    with contextlib.suppress(Exception):
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return None


def _jpeg_pixels(data: bytes, image: ImageFile.ImageFile) -> Pictures | None:
    """Pixels of an opened JPEG as PIL would decode it, in half to three quarters of the time; else None.

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
