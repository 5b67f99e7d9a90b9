"""Layout of a cache on disk: its files, their names and sizes, and the metadata of its arrays.

    <root>/<key>/
        zarr.json                    Zarr v3 group; attributes {"retort": CacheManifest}
        logits/zarr.json             [views, samples, classes], spec dtype, chunks (1, R, classes)
        logits/c/<view>/<block>/0    one chunk: R rows, then their crc32c
        <other>/zarr.json            other arrays of the encoding, see store.encodings; lossy ones alone
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
    <root>/.turn                     locked by a process that evicts or reserves, see store.eviction

<block> counts within its view here. Codecs are exactly bytes (little-endian) and crc32c, so a chunk file is
R flat rows and four bytes; the last chunk of a view is padded with NaN, or with 0 if it has
integers. Any Zarr v3 client reads the arrays.

Commit records alone decide which blocks are there: Zarr reads a missing chunk as fill values, without
an error. The crc32c in a record is that of the chunk's payload and must equal the file's last four
bytes, so a chunk in another's place is noticed although it is whole in itself.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from store.errors import InvalidArgument
from store.filesystem import CHECKSUM_BYTES
from store.spec import CacheSpec

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


def group_path(root: Path, key: str) -> Path:
    """Folder of one cache. Raises InvalidArgument unless the key is 64 hex digits."""
    if not _KEY.fullmatch(key):
        raise InvalidArgument(f"{key!r} is not a cache key: a key is 64 lower-case hex digits")
    return root / key


def group_paths(root: Path) -> list[Path]:
    """Folders under root that are named like a cache, sorted by key."""
    return _named(_KEY, root)


def chunk_name(array: str, spec: CacheSpec, block: int) -> str:
    """Chunk file of one block of one array, relative to the group."""
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
    """Commit record of one block, relative to the group."""
    view, within = divmod(block, spec.blocks_per_view)
    return f"{COMMITS_FOLDER}/{view}-{within}.json"


def record_paths(group: Path) -> list[Path]:
    """Files that are named like a commit record, of this cache's blocks or not, sorted."""
    return _named(_RECORD, group / COMMITS_FOLDER)


def provenance_name(content: bytes) -> str:
    """File of one origin of blocks, relative to the group: the same for the same canonical JSON."""
    return f"{PROVENANCE_FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}.json"


def origin_paths(group: Path) -> list[Path]:
    """Files of the origins of blocks, sorted."""
    return _named(_ORIGIN, group / PROVENANCE_FOLDER)


def array_metadata(array: str, spec: CacheSpec) -> dict[str, Any]:
    """Metadata that <array>/zarr.json must have, apart from names and attributes."""
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
