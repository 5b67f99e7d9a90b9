"""Export of a complete cache to one file that other programs read: ``npz``, ``parquet`` or ``zarr``.

``npz``      arrays ``logits`` [V, N, C] as a reader hands them out, each of ``STATISTICS`` as float32 [V, N],
             ``spec`` (JSON, a string) and, where they are known, ``sample_ids`` and ``labels`` [N]; for ``np.load``
``parquet``  a row for each view of each sample: ``view``, ``row``, ``sample_id``, ``label``, the statistics and
             ``logits``, a list of C; the spec is in the schema's metadata under ``retort``. Needs pyarrow
``zarr``     a zip of the cache as it is stored (Zarr v3, for ``zarr.storage.ZipStore``), without commit records; of a
             lossy cache these are the encoded arrays

The same cache gives the same bytes. One block is held in memory at a time.

Legend: V views, N samples, C classes.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from store import layout
from store.errors import CacheCorrupt
from store.reader import CacheReader
from store.statistics import STATISTICS
from store.verify import verify_group

ExportFormat = Literal["npz", "parquet", "zarr"]
# Ids are converted so many at a time.
_PIECE = 4096
# A zip keeps no time of today: exported again, it has the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ZARR_DOCUMENT = "zarr.json"


@dataclass(frozen=True)
class SampleFacts:
    """Facts about the samples of a cache, which it does not hold itself.

    Attributes:
        ids: of each sample [N], such as its file's name.
        labels: int64 [N]; -1 is a sample without one.
    """

    ids: Sequence[str]
    labels: npt.NDArray[np.int64]


def export_cache(root: Path, key: str, format: ExportFormat, path: Path, *, facts: SampleFacts | None = None) -> None:
    """Write a cache to ``path``, which is replaced.

    Every byte is compared with its checksum first.

    Raises:
        CacheNotFound, CacheIncomplete, CacheCorrupt, InvalidArgument: there is no such complete cache.
        ImportError: ``parquet`` without pyarrow.
    """
    with CacheReader.from_key(root, key) as reader:
        report = verify_group(reader.path)
        if not report.ok:
            raise CacheCorrupt(f"{report.problems[0]}: delete the cache, a later job makes it anew")
        _WRITERS[format](reader, path, facts)


def _write_npz(reader: CacheReader, path: Path, facts: SampleFacts | None) -> None:
    spec = reader.spec
    with zipfile.ZipFile(path, "w") as archive:
        shape = (spec.views, spec.samples, spec.classes)
        rows = (rows_BC for _, _, rows_BC in _blocks(reader))
        _add_array(archive, "logits", rows, dtype=spec.numpy_dtype, shape=shape)
        for name in STATISTICS:
            views = (reader.statistics(view)[name] for view in range(spec.views))
            _add_array(archive, name, views, dtype=np.dtype("<f4"), shape=shape[:2])
        text = np.asarray(spec.model_dump_json())
        _add_array(archive, "spec", [text], dtype=text.dtype, shape=())
        if facts is not None:
            dtype = np.dtype(f"<U{max(map(len, facts.ids))}")
            pieces = (np.asarray(facts.ids[start : start + _PIECE], dtype) for start in range(0, spec.samples, _PIECE))
            _add_array(archive, "sample_ids", pieces, dtype=dtype, shape=(spec.samples,))
            _add_array(archive, "labels", [facts.labels], dtype=np.dtype("<i8"), shape=(spec.samples,))


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    pieces: Iterator[npt.NDArray[np.generic]] | Sequence[npt.NDArray[np.generic]],
    *,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
) -> None:
    """Write an array piece by piece, as ``np.savez`` would whole."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).tobytes())


def _write_parquet(reader: CacheReader, path: Path, facts: SampleFacts | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = reader.spec
    statistics = [(name, pa.float32()) for name in STATISTICS]
    of_sample = [] if facts is None else [("sample_id", pa.string()), ("label", pa.int64())]
    element = pa.float16() if spec.dtype == "float16" else pa.float32()
    columns = [("view", pa.int32()), ("row", pa.int64()), *of_sample, *statistics, ("logits", pa.list_(element))]
    schema = pa.schema(columns, metadata={"retort": spec.model_dump_json()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for view, start, rows_BC in _blocks(reader):
            samples = slice(start, start + len(rows_BC))
            offsets = np.arange(len(rows_BC) + 1, dtype=np.int32) * spec.classes
            values: dict[str, object] = {
                "view": np.full(len(rows_BC), view, np.int32),
                "row": np.arange(samples.start, samples.stop),
                **{name: reader.statistics(view)[name][samples] for name in STATISTICS},
                "logits": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows_BC.ravel())),
            }
            if facts is not None:
                # A file's name need not be text.
                values["sample_id"] = [each.encode(errors="replace").decode() for each in facts.ids[samples]]
                values["label"] = facts.labels[samples]
            writer.write_table(pa.table({name: values[name] for name in schema.names}, schema))


def _write_zarr(reader: CacheReader, path: Path, facts: SampleFacts | None) -> None:
    spec = reader.spec
    names = [_ZARR_DOCUMENT, *(f"{array}/{_ZARR_DOCUMENT}" for array in spec.arrays)]
    for block in range(spec.blocks):
        names += [layout.chunk_name(array.name, spec, block) for array in spec.arrays_of(block)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            _add_file(archive, name, (reader.path / name).read_bytes())
        if facts is not None:
            content = {"sample_ids": list(facts.ids[:]), "labels": facts.labels.tolist()}
            _add_file(archive, "samples.json", json.dumps(content).encode())


def _add_file(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as file:
        file.write(content)


def _blocks(reader: CacheReader) -> Iterator[tuple[int, int, npt.NDArray[np.floating]]]:
    """View, first sample and logits [B, C] of each block, in order."""
    for block in range(reader.spec.blocks):
        view, start, stop = reader.spec.block_range(block)
        yield view, start, reader.gather(view, np.arange(start, stop))


_WRITERS: Mapping[ExportFormat, Callable[[CacheReader, Path, SampleFacts | None], None]] = {
    "npz": _write_npz,
    "parquet": _write_parquet,
    "zarr": _write_zarr,
}
