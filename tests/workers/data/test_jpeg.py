"""JPEGs: whatever decodes them, the pixels and the errors are PIL's."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from workers.data.decoding import pictures
from workers.data.decoding.pictures import decode_picture
from workers.errors import InvalidDataset

PATH = Path("folder/cat/1.jpg")
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours and noise."""
    generator = np.random.default_rng([height, width])
    colours = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + generator.integers(-40, 41, (height, width, 1), dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()


def of_pil(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(picture(30, 40), exif=exif)


def beginning_with(segment: bytes, data: bytes) -> bytes:
    return data[:2] + segment + data[2:]


def without_last_scans(data: bytes) -> bytes:
    """A progressive picture that ends, properly, after its first scans."""
    starts = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    assert len(starts) > 4
    return data[: starts[3]] + b"\xff\xd9"


def of_simplejpeg(subsampling: str) -> bytes:
    """PIL cannot write these."""
    return simplejpeg.encode_jpeg(np.asarray(picture(101, 77)), quality=90, colorsubsampling=subsampling)


def several() -> bytes:
    """As cameras write a preview beside the picture."""
    file = io.BytesIO()
    picture(101, 77).save(file, "MPO", save_all=True, append_images=[picture(9, 9)])
    return file.getvalue()


RGB, GREY = picture(101, 77), picture(101, 77, "L")
FAST: dict[str, Callable[[], bytes]] = {
    **{f"{h} x {w}": lambda h=h, w=w: jpeg(picture(h, w)) for h, w in ((1, 1), (2, 3), (16, 16), (33, 31), (375, 500))},
    "1,500 x 2,000": lambda: jpeg(picture(1500, 2000), quality=90),
    **{name: lambda n=n: jpeg(RGB, subsampling=n) for n, name in enumerate(("4:4:4", "4:2:2", "4:2:0"))},
    "4:4:0": lambda: of_simplejpeg("440"),
    "4:1:1": lambda: of_simplejpeg("411"),
    "progressive": lambda: jpeg(RGB, progressive=True),
    "progressive, its last scans left out": lambda: without_last_scans(jpeg(RGB, progressive=True)),
    "optimized": lambda: jpeg(RGB, optimize=True),
    "restarts": lambda: jpeg(RGB, restart_marker_blocks=2),
    "coarse": lambda: jpeg(RGB, quality=3),
    "fine": lambda: jpeg(RGB, quality=100),
    "grey": lambda: jpeg(GREY),
    "grey, progressive": lambda: jpeg(GREY, progressive=True),
    "stored as RGB": lambda: jpeg(RGB, keep_rgb=True),
    "turned by EXIF": turned,
    "with a profile": lambda: jpeg(RGB, icc_profile=bytes(70_000), comment=b"a comment"),
    "Adobe's, YCbCr": lambda: beginning_with(ADOBE + b"\x01", jpeg(RGB)),
    "Adobe's, RGB": lambda: beginning_with(
        ADOBE + b"\x00", jpeg(RGB, subsampling=0)[:2] + jpeg(RGB, subsampling=0)[20:]
    ),
    "bytes after the end": lambda: jpeg(RGB) + b"more",
}
BY_PIL: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: jpeg(picture(40, 30, "CMYK")),
    "YCCK": lambda: jpeg(picture(40, 30, "CMYK")).replace(ADOBE + b"\x00", ADOBE + b"\x02"),
    "of several pictures": several,
    "bytes between segments": lambda: jpeg(RGB)[:20] + b"junk" + jpeg(RGB)[20:],
    "bytes missing": lambda: jpeg(RGB)[:1000] + jpeg(RGB)[1040:],
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each picture that was opened, whether its pixels are the faster decoder's."""
    seen: list[bool] = []
    made = pictures._jpeg_pixels

    def watched(*arguments: object) -> NDArray[np.uint8] | None:
        pixels = made(*arguments)
        seen.append(pixels is not None)
        return pixels

    monkeypatch.setattr(pictures, "_jpeg_pixels", watched)
    return seen


@pytest.mark.parametrize("kind", [*FAST, *BY_PIL])
def test_decode_picture_gives_the_bits_of_pil(kind: str, taken: list[bool]) -> None:
    data = {**FAST, **BY_PIL}[kind]()
    np.testing.assert_array_equal(decode_picture(data, PATH, None), of_pil(data))
    assert taken == [kind in FAST]


def test_decode_picture_resizes_the_bits_of_pil() -> None:
    data = FAST["375 x 500"]()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB").resize((31, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_picture(data, PATH, (20, 31)), expected)


def outcome(data: bytes) -> bytes | str:
    """The pixels or the error."""
    try:
        pixels = decode_picture(data, PATH, None)
    except InvalidDataset as error:
        # It may name the buffer that the file was read into.
        return str(error).split(" object at 0x")[0]
    return repr(pixels.shape).encode() + pixels.tobytes()


def outcomes(data: bytes) -> list[bytes | str]:
    """As it is, and with PIL alone."""
    with pytest.MonkeyPatch.context() as patched:
        found = outcome(data)
        patched.setattr(pictures, "_jpeg_pixels", lambda *_: None)
        return [found, outcome(data)]


@pytest.mark.parametrize("cut", [3, 100, 300, 700, -2, -30])
def test_decode_picture_of_a_truncated_jpeg_fails_as_pil_fails(cut: int) -> None:
    found, expected = outcomes(jpeg(RGB)[:cut])
    assert found == expected
    assert isinstance(found, str)
    assert found.startswith(f"{PATH} cannot be read as a picture: ")


# Lossless, differential, arithmetic, arithmetic and progressive.
@pytest.mark.parametrize("frame", [b"\xc3", b"\xc5", b"\xc9", b"\xca", b"\xcf"])
def test_decode_picture_leaves_rare_frames_to_pil(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("was asked"))
    data = jpeg(GREY).replace(b"\xff\xc0", b"\xff" + frame)
    found, expected = outcomes(data)
    assert found == expected


def test_decode_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("was asked"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 101 * 77 // 2 - 1)
    with pytest.raises(InvalidDataset, match=r"cat/1\.jpg cannot be read as a picture: .*decompression bomb"):
        decode_picture(jpeg(RGB), PATH, None)


def test_decode_picture_of_a_size_that_pil_does_not_see_is_pil_s(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(RGB)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: np.zeros((99, 77, 3), np.uint8))
    np.testing.assert_array_equal(decode_picture(data, PATH, None), of_pil(data))


def test_decode_picture_of_any_damage_ends_as_with_pil() -> None:
    chance = random.Random(0)
    wholes = [jpeg(picture(20, 30)), jpeg(picture(20, 30), progressive=True), jpeg(picture(9, 9, "L")), turned()]
    ended = set()
    for _ in range(600):
        data = bytearray(chance.choice(wholes))
        for _ in range(chance.randrange(1, 4)):
            # Mostly in the header, where the two read for themselves.
            place = chance.randrange(chance.choice((200, 640, len(data))))
            data[place : place + chance.randrange(2)] = chance.choice(
                (b"", b"\xff", bytes([chance.randrange(256)]), bytes([255, chance.randrange(0xC0, 256)]))
            )
        found, expected = outcomes(bytes(data))
        assert found == expected, bytes(data).hex()
        ended.add(type(found))
    assert ended == {bytes, str}
