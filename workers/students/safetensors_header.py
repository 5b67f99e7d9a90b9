"""Header of a safetensors file, read by hand and not trusted: sizes, dtypes, shapes and places of its tensors. Light.

The format: 8 bytes, little-endian, with the length of a JSON object; that object, with ``dtype``, ``shape`` and
``data_offsets`` of each tensor; their bytes, without gaps (github.com/huggingface/safetensors).
"""

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workers.errors import InvalidStudentFile, first_line
from workers.texts import shortened

HEADER_BYTES_MAX = 8 << 20
TENSORS_MAX = 20_000
_NAME_MAX = 512
_RANK_MAX = 8
_NAMED_CHARS = 80
# Bytes of one value, by the format's name of the dtype.
DTYPES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
FLOATS = ("F64", "F32", "F16", "BF16")
# End of the name of a variance in a state: of batch normalisation.
VARIANCE = "running_var"
METADATA_KEY = "__metadata__"
_Extent = Annotated[int, Field(strict=True, ge=0, lt=1 << 40)]


class StoredTensor(NamedTuple):
    """Tensor in a file.

    Attributes:
        dtype: a name of ``DTYPES``.
        start, end: of its bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)


class Header(NamedTuple):
    """Header of a file.

    Attributes:
        tensors: by name, in the order of their bytes.
        metadata: text that stands beside them.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: Annotated[str, Field(max_length=16)]
    shape: Annotated[tuple[_Extent, ...], Field(max_length=_RANK_MAX)]
    data_offsets: tuple[_Extent, _Extent]


_METADATA_TYPE: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def read_header(path: Path) -> Header:
    """Read and check the header of a file; its tensors must fill the rest of the file.

    Raises:
        InvalidStudentFile: naming what is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= size - 8:
            raise InvalidStudentFile(
                "the file is no safetensors file: it does not begin with the length of a header. Save weights with "
                "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            )
        if length > HEADER_BYTES_MAX:
            raise InvalidStudentFile(f"the header has {length} bytes, at most {HEADER_BYTES_MAX} are read")
        text = file.read(length)
    entries, metadata = _entries(text)
    found = {name: _tensor(name, entry, 8 + length, size) for name, entry in entries.items()}
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_places(tensors, 8 + length, size)
    return Header(tensors, metadata)


def _entries(text: bytes) -> tuple[dict[str, object], dict[str, str]]:
    """Entries of the header by name, and its metadata."""

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        collected = dict(pairs)
        if len(collected) != len(pairs):
            raise InvalidStudentFile("the header has an object with one name twice: readers differ in which they take")
        return collected

    try:
        header = json.loads(text.decode(), object_pairs_hook=collect)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidStudentFile):
            raise
        raise InvalidStudentFile(f"the header is no JSON: {first_line(error)}") from error
    if not isinstance(header, dict):
        raise InvalidStudentFile("the header is no JSON object")
    metadata = None
    with suppress(ValidationError):
        metadata = _METADATA_TYPE.validate_python(header.pop(METADATA_KEY, {}))
    if metadata is None:
        raise InvalidStudentFile("the header's __metadata__ is no object of texts")
    if not 0 < len(header) <= TENSORS_MAX:
        raise InvalidStudentFile(f"the file has {len(header)} tensors: 1 to {TENSORS_MAX} are taken")
    return header, metadata


def _tensor(name: str, given: object, start: int, size: int) -> StoredTensor:
    shown = shortened(name, _NAMED_CHARS)
    if not (name.isprintable() and 0 < len(name) <= _NAME_MAX):
        raise InvalidStudentFile(f"a tensor is called {shown!r}: names are 1 to {_NAME_MAX} printable characters")
    entry, mistake = None, ""
    try:
        entry = _Entry.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        mistake = f"{'/'.join(map(str, problem['loc']))} {problem['msg']}"
    if entry is None:
        raise InvalidStudentFile(f"the header's entry of tensor {shown!r} is wrong: {mistake}")
    width = DTYPES.get(entry.dtype)
    if width is None:
        raise InvalidStudentFile(
            f"tensor {shown!r} is {shortened(entry.dtype, _NAMED_CHARS)!r}: {', '.join(DTYPES)} are taken"
        )
    begin, end = (start + offset for offset in entry.data_offsets)
    values = prod(entry.shape)
    if end - begin != values * width or end > size:
        raise InvalidStudentFile(
            f"tensor {shown!r} is {entry.dtype} {list(entry.shape)}, which is {values * width} bytes, and the header "
            f"gives it bytes {begin} to {end} of a file of {size}: the file is cut off or damaged"
        )
    return StoredTensor(entry.dtype, entry.shape, begin, end)


def _check_places(tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Refuse tensors, in the order of their bytes, that share some, or bytes that no tensor has."""
    at = start
    for name, tensor in tensors.items():
        if tensor.start != at:
            raise InvalidStudentFile(
                f"tensor {shortened(name, _NAMED_CHARS)!r} begins at byte {tensor.start}, and the one before it ends "
                f"at {at}: tensors lie one behind the other, without gaps"
            )
        at = tensor.end
    if at != size:
        raise InvalidStudentFile(f"the file has {size - at} bytes behind its last tensor: it is damaged")
