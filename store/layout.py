"""Where everything of one cache lies on disk, and how it is read back and checked.

    <root>/<key>/
        zarr.json                    Zarr v3 group; attributes {"retort": Manifest}
        logits/zarr.json             [views, samples, classes], spec dtype, chunks (1, R, classes)
        logits/c/<view>/<block>/0    one chunk: R rows, then their crc32c
        <other>/zarr.json            what else the encoding needs of a row, see encoding.py; lossy ones alone
        <other>/c/<view>/<block>     (and /0 if it has several values a row)
        <statistic>/zarr.json        [views, samples], float32, chunks (1, R); one per statistic
        <statistic>/c/<view>/<block>
        reference/zarr.json          [rows, classes], float32, one chunk; lossy encodings alone
        reference/c/0/0              exact logits of block 0's first rows, committed with it
        commits/<view>-<block>.json  BlockRecord: this block is whole; written last
        provenance/<digest>.json     where blocks were computed: free JSON, one file for each origin; no part of the
                                     cache's identity
        COMPLETE                     Completion: every block is committed; written last of all
        LAST_USED                    written by Catalog.touch; no part of the cache's identity
        PINNED                       written by Catalog.pin, and gone after unpin; no part of it either
    <root>/.turn                     locked by whoever evicts or reserves, see eviction.py

<block> counts within its view here. Codecs are exactly bytes (little-endian) and crc32c, so a chunk file is
R flat rows and four bytes; the last chunk of a view is padded with NaN, or with 0 if it has
integers. Any Zarr v3 client reads the arrays.

What is there is decided by commit records alone: Zarr reads a missing chunk as fill values, without
a word. The crc32c in a record is that of the chunk's payload and must equal the file's last four
bytes, so a chunk in another's place is noticed although it is whole in itself.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from store.errors import CacheCorrupt, CacheNotFound, InvalidArgument
from store.filesystem import CHECKSUM_BYTES, crc32c, read_trailer
from store.spec import FORMAT_VERSION, CacheSpec, canonical_json

GROUP_FILE = "zarr.json"
COMPLETE_FILE = "COMPLETE"
LAST_USED_FILE = "LAST_USED"
PINNED_FILE = "PINNED"
COMMITS_FOLDER = "commits"
PROVENANCE_FOLDER = "provenance"
CREATING_PREFIX = ".creating-"
DELETED_PREFIX = ".deleted-"
TURN_FILE = ".turn"

_KEY = re.compile(r"[0-9a-f]{64}")
# Files of other names are no part of a cache: macOS leaves ``._0-0.json`` and ``.DS_Store``, Windows ``desktop.ini``.
_RECORD = re.compile(r"[0-9]+-[0-9]+\.json")
_ORIGIN = re.compile(r"[0-9a-f]{16}\.json")

Model = TypeVar("Model", bound=BaseModel)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Manifest(_Stored):
    """What the group's attributes say. `provenance` is the creator's free JSON: device, versions."""

    format_version: Literal[1] = 1
    key: str
    spec: CacheSpec
    created_at: AwareDatetime
    provenance: dict[str, JsonValue]


class FileRecord(_Stored):
    """Bytes of a chunk file, checksum included, and crc32c of its payload, checksum excluded."""

    size: int
    crc32c: int


class BlockRecord(_Stored):
    """A committed block: how many rows it holds and the chunk files, relative to the group."""

    rows: int
    files: dict[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The commit record's content, the same for the same block."""
        return canonical_json(self.model_dump(mode="json"))


class Completion(_Stored):
    """The content of COMPLETE. `commits_sha256` is over the records' bytes in block order."""

    key: str
    blocks: int
    commits_sha256: str
    provenance: dict[str, JsonValue]


def group_path(root: Path, key: str) -> Path:
    """The folder of one cache. Raises InvalidArgument unless the key is 64 hex digits."""
    if not _KEY.fullmatch(key):
        raise InvalidArgument(f"{key!r} is not a cache key: a key is 64 lower-case hex digits")
    return root / key


def group_paths(root: Path) -> list[Path]:
    """The folders under root that are named like a cache, sorted by key."""
    return _named(_KEY, root)


def chunk_name(array: str, spec: CacheSpec, block: int) -> str:
    """The chunk file of one block of one array, relative to the group."""
    view, within = divmod(block, spec.blocks_per_view)
    stored = spec.arrays[array]
    return f"{array}/c/{view}/{within}" + ("/0" if stored.columns and stored.rows is None else "")


def chunk_rows(array: str, spec: CacheSpec) -> int:
    """Rows of every chunk of one array, padding included."""
    return spec.arrays[array].rows or spec.block_rows


def chunk_bytes(array: str, spec: CacheSpec) -> int:
    """Size of every chunk file of one array, padding and checksum included."""
    return chunk_rows(array, spec) * spec.arrays[array].row_bytes + CHECKSUM_BYTES


def record_name(spec: CacheSpec, block: int) -> str:
    """The commit record of one block, relative to the group."""
    view, within = divmod(block, spec.blocks_per_view)
    return f"{COMMITS_FOLDER}/{view}-{within}.json"


def record_paths(group: Path) -> list[Path]:
    """The files that are named like a commit record, of this cache's blocks or not, sorted."""
    return _named(_RECORD, group / COMMITS_FOLDER)


def provenance_name(content: bytes) -> str:
    """The file of one origin of blocks, relative to the group: the same for the same canonical JSON."""
    return f"{PROVENANCE_FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}.json"


def read_provenance(group: Path, *given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What is known of how a cache came about: what was `given` at its creation and end, and its blocks' origins.

    `computed_on` lists the origins; it is not there if no block has one. Nothing depends on them, so one that cannot
    be read is listed with its `problem` and raises nothing.
    """
    provenance = {name: value for part in given for name, value in part.items()}
    origins: list[JsonValue] = []
    for path in _named(_ORIGIN, group / PROVENANCE_FOLDER):
        try:
            origins.append(_read_json(path))
        except CacheCorrupt as error:
            origins.append({"problem": str(error)})
    return provenance | ({"computed_on": origins} if origins else {})


def array_metadata(array: str, spec: CacheSpec) -> dict[str, Any]:
    """What <array>/zarr.json must say, apart from names and attributes."""
    stored, rows = spec.arrays[array], chunk_rows(array, spec)
    columns = [] if stored.columns is None else [stored.columns]
    whole = stored.rows is not None
    endian = {"configuration": {"endian": "little"}} if stored.numpy_dtype.itemsize > 1 else {}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *columns] if whole else [spec.views, spec.samples, *columns],
        "data_type": stored.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows, *columns] if whole else [1, rows, *columns]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if stored.is_float else 0,
        "codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
        "storage_transformers": [],
    }


def read_manifest(group: Path) -> Manifest:
    """The group's manifest. Raises CacheNotFound (no such folder), CacheCorrupt (unreadable)."""
    if not group.is_dir():
        raise CacheNotFound(f"there is no cache {group.name} under {group.parent}")
    path = group / GROUP_FILE
    attributes = _read_json(path).get("attributes")
    stored = attributes.get("retort") if isinstance(attributes, dict) else None
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        raise CacheCorrupt(
            f"{path}: format version {version!r}, but this Retort reads version {FORMAT_VERSION}: "
            "delete the cache and compute it again"
        )
    return _validate(Manifest, stored, path)


def read_completion(group: Path) -> Completion | None:
    """The content of COMPLETE, or None where the cache was never finished. Raises CacheCorrupt."""
    path = group / COMPLETE_FILE
    if not path.exists():
        return None
    return _validate(Completion, _read_json(path), path)


def check_arrays(group: Path, spec: CacheSpec) -> None:
    """Raise CacheCorrupt if an array's metadata are not exactly those of the format."""
    for array in spec.arrays:
        path = group / array / "zarr.json"
        found = _read_json(path)
        for field, wanted in array_metadata(array, spec).items():
            if found.get(field) != wanted:
                raise CacheCorrupt(f"{path}: {field} is {found.get(field)!r} and must be {wanted!r}")


def load_record(group: Path, spec: CacheSpec, block: int) -> BlockRecord | None:
    """The commit record of a block, or None where there is none; the chunk files are not looked at.

    Raises CacheCorrupt if the record is unreadable or is not one of this block.
    """
    path = group / record_name(spec, block)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    record = _validate(BlockRecord, _parse(content, path), path)
    _, start, stop = spec.block_range(block)
    expected = {chunk_name(a.name, spec, block): chunk_bytes(a.name, spec) for a in spec.arrays_of(block)}
    sizes = {name: file.size for name, file in record.files.items()}
    if record.rows != stop - start or sizes != expected or record.to_bytes() != content:
        raise CacheCorrupt(f"{path}: a stale or foreign commit record: it does not describe this block")
    return record


def check_chunk_files(group: Path, record: BlockRecord) -> None:
    """Raise CacheCorrupt unless each chunk file is there, has its size and ends in its checksum.

    Cheap (one page per file): it finds missing, cut and swapped files, not flipped bits.
    """
    for name, file in record.files.items():
        path = group / name
        try:
            trailer = read_trailer(path, file.size)
        except FileNotFoundError:
            raise CacheCorrupt(f"{path}: the file is missing") from None
        if trailer is None:
            raise CacheCorrupt(f"{path}: {path.stat().st_size} bytes, and must have {file.size}")
        if trailer != file.crc32c:
            raise CacheCorrupt(
                f"{path}: ends in checksum {trailer:08x}, but {file.crc32c:08x} was committed: "
                "damaged, or another chunk's file"
            )


def read_chunk(
    group: Path,
    spec: CacheSpec,
    array: str,
    block: int,
    record: BlockRecord,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[Any]:
    """The values [rows] or [rows, columns] of one chunk, every byte checked against the record.

    They are read into `out` if it is given: C-contiguous, of the array's dtype and just these rows.
    Raises CacheCorrupt naming the file.
    """
    name = chunk_name(array, spec, block)
    path = group / name
    expected = record.files[name]
    stored, rows = spec.arrays[array], chunk_rows(array, spec)
    shape = (rows,) if stored.columns is None else (rows, stored.columns)
    whole = out if out is not None and len(out) == rows else np.empty(shape, stored.numpy_dtype)
    trailer = bytearray(CHECKSUM_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == expected.size:
                size = os.preadv(file.fileno(), [whole.reshape(-1).view(np.uint8).data, trailer], 0)
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: the file is missing") from None
    if size != expected.size:
        raise CacheCorrupt(f"{path}: {size} bytes, and must have {expected.size}")
    found = crc32c(whole)
    if found != expected.crc32c or found != int.from_bytes(trailer, "little"):
        raise CacheCorrupt(
            f"{path}: content of checksum {found:08x}, but {expected.crc32c:08x} was committed: "
            "damaged; delete the cache and compute it again"
        )
    if out is None:
        return whole[: record.rows]
    if out is not whole:
        out[:] = whole[: record.rows]
    return out


def commits_sha256(records: Iterator[BlockRecord]) -> str:
    """The digest that COMPLETE holds, over every record in block order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.to_bytes())
    return digest.hexdigest()


def size_bytes(group: Path) -> int:
    """Bytes of all files under a group; files that vanish meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(group):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _named(pattern: re.Pattern[str], folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: the file is missing") from None


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise CacheCorrupt(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CacheCorrupt(f"{path}: not a JSON object")
    return value


def _validate(model: type[Model], value: object, path: Path) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = str(error)
    # Outside of the block: what has pydantic's exception as its cause is never freed if that refers to it in turn.
    raise CacheCorrupt(f"{path}: {problem}")
