"""Confined child that reads an upload of logits: npy, npz or Parquet; see ``uploaded_file``. No store, no torch.

The type, the shape and the size of every array are checked by its header before anything of it is read. Values go piece
by piece to the mapped target, as float32; nothing is unpickled.

Legend: V views, N samples, K columns (classes, or the k of top-k).
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from workers.errors import InvalidLogits
from workers.teacher.imports.target import Target
from workers.texts import shortened

_PIECE_BYTES = 4 << 20
# Of all ids of a file, as the file has them.
_IDS_MAX_BYTES = 1 << 28
_HEADER_MAX = 10_000
_NPY, _ZIP, _PARQUET = b"\x93NUMPY", b"PK\x03\x04", b"PAR1"
FORMS = (
    "send an .npy of logits [views, samples, classes] or [samples, classes]; an .npz with `logits` and `sample_ids`, "
    "or with `values` and `indices` [samples, k] of top-k; or a Parquet file with these as columns"
)


def answer(path: str, descriptor: int, bytes_max: int) -> JsonValue:
    """Read the file to the target; answers its description, or why there is none."""
    target = Target(descriptor, bytes_max)
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            file.seek(0)
            if head.startswith(_NPY):
                return _read_npy(file, target)
            if head.startswith(_ZIP):
                return _read_npz(file, target)
        if head.startswith(_PARQUET):
            # pyarrow takes a second to load.
            from workers.teacher.imports.parquet_child import read_parquet

            return read_parquet(path, target)
        raise InvalidLogits(f"the file is none of npy, npz and Parquet, by its first bytes: {FORMS}")
    except InvalidLogits as error:
        return {"error": str(error)}
    except (ValueError, ArithmeticError, LookupError, TypeError, OSError, struct.error) as error:
        return {"error": f"the file of logits is damaged ({type(error).__name__}: {shortened(str(error))})"}


class _Header(NamedTuple):
    """Header of an array in numpy's format.

    Attributes:
        is_fortran: whether the first axis moves fastest, as that of an array whose columns were chosen.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


def _read_npy(file: IO[bytes], target: Target) -> JsonValue:
    header = _header(file, "the logits")
    target.allocate(_three(header.shape), None, is_top_k=False)
    copy_values(file, header, target.values_RK, "the logits")
    return target.answer(header.dtype)


def _read_npz(file: IO[bytes], target: Target) -> JsonValue:
    try:
        with zipfile.ZipFile(file) as archive, ExitStack() as opened:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}

            def member(name: str) -> tuple[IO[bytes], _Header]:
                stream = opened.enter_context(archive.open(f"{name}.npy"))
                return stream, _header(stream, f"the array {name!r}")

            is_top_k = check_names(names, "arrays")
            stream, header = member("values" if is_top_k else "logits")
            shape = _three(header.shape)
            ids = _ids(*member("sample_ids"), samples=shape[1]) if "sample_ids" in names else None
            target.allocate(shape, ids, is_top_k=is_top_k)
            copy_values(stream, header, target.values_RK, "the values" if is_top_k else "the logits")
            if target.indices_RK is not None:
                of_indices, found = member("indices")
                if found.shape != header.shape:
                    raise InvalidLogits(
                        f"values have the shape {list(header.shape)}, indices {list(found.shape)}: give one for each"
                    )
                _copy_indices(of_indices, found, target.indices_RK)
            return target.answer(header.dtype)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        raise InvalidLogits(
            f"the .npz cannot be read ({type(error).__name__}: {shortened(str(error))}): write it by numpy.savez or "
            "numpy.savez_compressed"
        ) from error


def check_names(names: "set[str]", what: str) -> bool:
    """Whether a file of these arrays or columns holds top-k. Raises InvalidLogits if it has neither form, or both."""
    is_top_k = {"values", "indices"} <= names
    if is_top_k == ("logits" in names):
        found = ", ".join(sorted(shortened(name, 40) for name in names)[:10]) or "none"
        raise InvalidLogits(f"the file has the {what} {found}, and needs either `logits`, or `values` and `indices`")
    return is_top_k


def _header(stream: IO[bytes], what: str) -> _Header:
    try:
        version = np.lib.format.read_magic(stream)
        readers: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_fortran, dtype = readers[version](stream, max_header_size=_HEADER_MAX)
    except (ValueError, LookupError, SyntaxError, TypeError, RecursionError, TokenError) as error:
        raise InvalidLogits(f"{what} cannot be read: the header is not numpy's ({shortened(str(error))})") from error
    if dtype.hasobject or dtype.fields is not None:
        raise InvalidLogits(f"{what} holds Python objects, which are not read: save numbers, or text for ids")
    return _Header(shape, dtype, is_fortran and len(shape) > 1)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(views, samples, columns) of an array of two or three dimensions."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise InvalidLogits(f"the logits have the shape {list(shape)}: it must be [samples, classes], or with views before")


def check_float(dtype: np.dtype[Any], what: str) -> None:
    """Refuse values that are no float16, float32 or float64. Raises InvalidLogits."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InvalidLogits(f"{what} are {dtype}: save them as float32 (float16 and float64 are read as well)")


def copy_values(stream: IO[bytes], header: _Header, values_RK: NDArray[np.float32], what: str) -> None:
    """Copy an array to rows of float32, piece by piece."""
    check_float(header.dtype, what)
    _copy(stream, header, values_RK, what, convert=lambda piece, first: to_float32(piece, what, first=first))


def _copy(
    stream: IO[bytes],
    header: _Header,
    target_RK: NDArray[Any],
    what: str,
    *,
    convert: Callable[[NDArray[Any], int], NDArray[Any]],
) -> None:
    """Copy an array to the target; ``convert`` gets rows and the number of the first of them."""
    rows, columns = target_RK.shape
    if not header.is_fortran:
        start = 0
        for piece in _pieces(stream, header, columns, what):
            target_RK[start : start + len(piece)] = convert(piece, start)
            start += len(piece)
        return
    # Column after column, of each the samples, and of each of those the views.
    views = header.shape[0] if len(header.shape) == 3 else 1
    column = 0
    for piece in _pieces(stream, header, rows, what):
        for values_NV in piece.reshape(len(piece), -1, views):
            target_RK[:, column] = convert(values_NV.T.reshape(-1, 1), 0)[:, 0]
            column += 1


def to_float32(values_RK: NDArray[Any], what: str, first: int) -> NDArray[np.float32]:
    """Values as float32. Raises InvalidLogits if one is not finite, naming its row, counted through all views."""
    with np.errstate(over="ignore"):
        found: NDArray[np.float32] = values_RK.astype(np.float32)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise InvalidLogits(
            f"{what} are not finite in row {first + row} (counted through all views): NaN, infinite, or too large for "
            "float32. Of probabilities that were rounded to 0 send those, not their log"
        )
    return found


def _copy_indices(stream: IO[bytes], header: _Header, indices_RK: NDArray[np.int32]) -> None:
    if header.dtype.kind not in "iu":
        raise InvalidLogits(f"the indices are {header.dtype}: save the numbers of classes as integers")
    _copy(stream, header, indices_RK, "the indices", convert=lambda piece, _: to_int32(piece))


def to_int32(indices_RK: NDArray[Any]) -> NDArray[np.int32]:
    """Numbers of classes as int32. Raises InvalidLogits for a negative or larger one."""
    if len(indices_RK) and (indices_RK.min() < 0 or indices_RK.max() >= 1 << 31):
        raise InvalidLogits("an index is negative, or none of a class: an index counts the classes from 0")
    return indices_RK.astype(np.int32)


def _pieces(stream: IO[bytes], header: _Header, columns: int, what: str) -> Iterator[NDArray[Any]]:
    """Pieces [r, columns] of an array, a few megabytes each."""
    rows = math.prod(header.shape) // columns
    row_bytes = columns * header.dtype.itemsize
    step = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        content = _read(stream, count * row_bytes)
        if len(content) != count * row_bytes:
            raise InvalidLogits(f"{what} end before their last row: the file was cut off")
        yield np.frombuffer(content, header.dtype).reshape(count, columns)


def _read(stream: IO[bytes], size: int) -> bytes:
    buffer = io.BytesIO()
    while (left := size - buffer.tell()) and (part := stream.read(left)):
        buffer.write(part)
    return buffer.getvalue()


def _ids(stream: IO[bytes], header: _Header, *, samples: int) -> list[str]:
    if len(header.shape) != 1 or header.shape[0] != samples:
        raise InvalidLogits(
            f"sample_ids have the shape {list(header.shape)}, there are {samples} samples: one for each"
        )
    size = samples * header.dtype.itemsize
    if header.dtype.kind not in "USiu" or size > _IDS_MAX_BYTES:
        raise InvalidLogits(
            f"sample_ids are {header.dtype}, {size} bytes: save text or integers, {_IDS_MAX_BYTES} bytes at most"
        )
    content = _read(stream, size)
    if len(content) != size:
        raise InvalidLogits("the sample_ids end before the last: the file was cut off")
    try:
        values = np.frombuffer(content, header.dtype) if header.dtype.itemsize else [""] * samples
        return [each.decode() if isinstance(each, bytes) else str(each) for each in values]
    except ValueError as error:
        raise InvalidLogits("a sample id is no text (UTF-8)") from error
