"""Creation of an empty cache: its group and arrays, as zarr describes them, and the folders of its chunks."""

import errno
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import zarr
from pydantic import JsonValue
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from store import layout
from store.documents import CacheManifest
from store.filesystem import fsync, fsync_tree
from store.spec import CacheSpec


def create_group(root: Path, spec: CacheSpec, provenance: dict[str, JsonValue]) -> None:
    """Create the empty group beside its place and rename it there; the loser of a race leaves nothing."""
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f"{layout.CREATING_PREFIX}{spec.key}-{uuid.uuid4().hex}"
    manifest = CacheManifest(
        key=spec.key,
        spec=spec,
        created_at=datetime.now(UTC).replace(microsecond=0),
        provenance=provenance,
    )
    try:
        _build(temporary, manifest)
        fsync_tree(temporary)
        temporary.rename(layout.group_path(root, spec.key))
        fsync(root)
    except OSError as error:
        # Another process was faster: a folder cannot be renamed onto one that is not empty.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(folder: Path, manifest: CacheManifest) -> None:
    """Write zarr's own documents of an empty group, and the folders that its chunks will lie in.

    zarr makes them in memory: it writes several at once from threads, which on a full disk go on after
    the first has failed, in a folder that is being deleted.
    """
    spec = manifest.spec
    attributes = {"retort": manifest.model_dump(mode="json")}
    documents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(documents), zarr_format=3, attributes=attributes)
    for array, stored in spec.arrays.items():
        metadata = layout.array_metadata(array, spec)
        names = ("view", "sample", "class") if stored.rows is None else ("sample", "class")
        group.create_array(
            array,
            shape=metadata["shape"],
            chunks=metadata["chunk_grid"]["configuration"]["chunk_shape"],
            dtype=metadata["data_type"],
            filters=None,
            serializer=BytesCodec(endian="little" if stored.numpy_dtype.itemsize > 1 else None),
            compressors=[Crc32cCodec()],
            fill_value=np.nan if stored.is_float else 0,
            dimension_names=names[: len(metadata["shape"])],
        )
        for view in range(spec.views if stored.rows is None else 1):
            (folder / array / "c" / str(view)).mkdir(parents=True)
    for name, document in documents.items():
        (folder / name).write_bytes(document.to_bytes())
    (folder / layout.COMMITS_FOLDER).mkdir()
