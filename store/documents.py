"""JSON documents of a cache: manifest, commit records, completion, provenance; how they are read and checked."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from store import layout
from store.errors import CacheCorrupt, CacheNotFound
from store.spec import FORMAT_VERSION, CacheSpec, canonical_json

_Model = TypeVar("_Model", bound=BaseModel)


class _CacheDocument(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CacheManifest(_CacheDocument):
    """Manifest: the attributes of the group. ``provenance`` is the creator's free JSON: device, versions."""

    format_version: Literal[1] = 1
    key: str
    spec: CacheSpec
    created_at: AwareDatetime
    provenance: dict[str, JsonValue]


class FileRecord(_CacheDocument):
    """Record of a chunk file: its bytes, checksum included, and the crc32c of its payload, checksum excluded."""

    size: int
    crc32c: int


class BlockRecord(_CacheDocument):
    """Commit record of a block: the number of its rows, and its chunk files, relative to the group."""

    rows: int
    files: dict[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The commit record's content, the same for the same block."""
        return canonical_json(self.model_dump(mode="json"))


class Completion(_CacheDocument):
    """Content of COMPLETE. ``commits_sha256`` is over the records' bytes in block order."""

    key: str
    blocks: int
    commits_sha256: str
    provenance: dict[str, JsonValue]


def read_provenance(group: Path, *given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Read the provenance of a cache: the parts ``given`` at its creation and end, and its blocks' origins.

    ``computed_on`` lists the origins; it is absent if no block has one. Nothing depends on them, so an unreadable one
    is listed with its ``problem`` and raises nothing.
    """
    provenance = {name: value for part in given for name, value in part.items()}
    origins: list[JsonValue] = []
    for path in layout.origin_paths(group):
        try:
            origins.append(_read_json(path))
        except CacheCorrupt as error:
            origins.append({"problem": str(error)})
    return provenance | ({"computed_on": origins} if origins else {})


def read_manifest(group: Path) -> CacheManifest:
    """Read the group's manifest. Raises CacheNotFound (no such folder), CacheCorrupt (unreadable)."""
    if not group.is_dir():
        raise CacheNotFound(f"there is no cache {group.name} under {group.parent}")
    path = group / layout.GROUP_FILE
    attributes = _read_json(path).get("attributes")
    stored = attributes.get("retort") if isinstance(attributes, dict) else None
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        raise CacheCorrupt(
            f"{path}: format version {version!r}, but this Retort reads version {FORMAT_VERSION}: "
            "delete the cache and compute it again"
        )
    return _validate(CacheManifest, stored, path)


def read_completion(group: Path) -> Completion | None:
    """Read the content of COMPLETE; None where the cache was never finished. Raises CacheCorrupt."""
    path = group / layout.COMPLETE_FILE
    if not path.exists():
        return None
    return _validate(Completion, _read_json(path), path)


def check_arrays(group: Path, spec: CacheSpec) -> None:
    """Check the arrays: raise CacheCorrupt if an array's metadata are not exactly those of the format."""
    for array in spec.arrays:
        path = group / array / "zarr.json"
        found = _read_json(path)
        for field, wanted in layout.array_metadata(array, spec).items():
            if found.get(field) != wanted:
                raise CacheCorrupt(f"{path}: {field} is {found.get(field)!r} and must be {wanted!r}")


def load_record(group: Path, spec: CacheSpec, block: int) -> BlockRecord | None:
    """Read the commit record of a block, None where there is none; the chunk files are not looked at.

    Raises CacheCorrupt if the record is unreadable or is not one of this block.
    """
    path = group / layout.record_name(spec, block)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    record = _validate(BlockRecord, _parse(content, path), path)
    _, start, stop = spec.block_range(block)
    expected = {layout.chunk_name(a.name, spec, block): layout.chunk_bytes(a.name, spec) for a in spec.arrays_of(block)}
    sizes = {name: file.size for name, file in record.files.items()}
    if record.rows != stop - start or sizes != expected or record.to_bytes() != content:
        raise CacheCorrupt(f"{path}: a stale or foreign commit record: it does not describe this block")
    return record


def commits_sha256(records: Iterator[BlockRecord]) -> str:
    """Digest of all commit records in block order, which COMPLETE holds."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.to_bytes())
    return digest.hexdigest()


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


def _validate(model: type[_Model], value: object, path: Path) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = str(error)
    # Raised outside of the block: an error whose cause is pydantic's exception is never freed if that refers to it.
    raise CacheCorrupt(f"{path}: {problem}")
