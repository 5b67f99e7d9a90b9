"""Parsing of ONNX files, with the nature of a file that cannot be parsed; text of a file for messages.

An ONNX file has no magic number, so "not ONNX" is a refusal to parse, made readable by looking for the signatures of
what people upload by mistake. Only onnx and the standard library are imported: the API process loads this.
"""

import contextlib
from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.message import DecodeError

from workers.errors import InvalidTeacher

EXPORT_HINT = "Export the classifier with torch.onnx.export, in eval mode, and give that one file"

# (offset, bytes, what it is) of what is uploaded by mistake.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive or a PyTorch checkpoint"),
    (257, b"ustar", "a tar archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, for which `git lfs pull` gets the file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    *((0, bytes([0x80, protocol]), "a Python pickle or a PyTorch checkpoint") for protocol in range(2, 6)),
    (0, b"\x89HDF", "an HDF5 (Keras) file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format"),
    (8, b'{"', "a safetensors file"),
)


def parse(content: bytes) -> onnx.ModelProto:
    """Parse the model in ``content``; its external data, if any, is not touched.

    Raises:
        InvalidTeacher: saying what ``content`` is instead, as far as that can be told.
    """
    for offset, magic, what in SIGNATURES:
        if content.startswith(magic, offset):
            raise InvalidTeacher(f"not an ONNX file: it is {what}. {EXPORT_HINT}")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidTeacher(f"not an ONNX file: {_what_instead(content)}. {EXPORT_HINT}") from error
    if model.ir_version < 1 or not model.HasField("graph"):
        raise InvalidTeacher(f"not an ONNX file: {_what_instead(content)}. {EXPORT_HINT}")
    return model


def _what_instead(content: bytes) -> str:
    if content[0] == 0x08:  # the tag of ir_version, which exporters write first
        return "it begins like one, and is cut short or damaged"
    with contextlib.suppress(UnicodeDecodeError):
        if all(character.isprintable() or character.isspace() for character in content[:4096].decode()):
            return "it is text"
    return "it cannot be parsed as one (the weights of a model that was saved as two files, perhaps)"


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn every error of onnx's C++ about a file into InvalidTeacher; ``what`` begins the sentence."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of many classes: its own, and what pybind11 makes of the standard library's
        raise InvalidTeacher(f"{what}: {first_line(error)}") from error


def listed(names: Iterable[str | bytes]) -> str:
    """The first sixteen names in order, for a message."""
    return ", ".join(short(name) for name in sorted(map(readable, names))[:16])


def short(text: str | bytes, length: int = 80) -> str:
    """``text`` cut to ``length`` characters: names in a file may be as long as the file."""
    text = readable(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def readable(text: str | bytes) -> str:
    """Text of a file for a message: what is not UTF-8 comes out of protobuf as bytes."""
    return text if isinstance(text, str) else text.decode(errors="replace")


def first_line(said: Exception | str) -> str:
    """First line of a C++ library's exception, without its trace."""
    lines = (line.strip() for line in str(said).splitlines())
    return short(next((line for line in lines if line), type(said).__name__), 300)
