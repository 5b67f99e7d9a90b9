"""Exports hold what a reader hands out, are the same bytes each time, and are not made of damaged caches."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from store import CacheCorrupt, CacheReader, CacheSpec, SparseEncoding
from store.export import ExportFormat, SampleFacts, export_cache
from store.statistics import STATISTICS
from tests.support.store_cases import make_labels, make_spec, write_cache

SPEC = make_spec(views=2)
SPARSE = make_spec(
    dtype="float32", classes=100, samples=300, encoding=SparseEncoding(kind="sparse", top=20, tail=5, temperature=1.0)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete caches."""
    root = tmp_path_factory.mktemp("caches")
    write_cache(root, SPEC)
    write_cache(root, SPARSE)
    return root


def facts_of(spec: CacheSpec) -> SampleFacts:
    """Names of files, and labels."""
    return SampleFacts([f"train/cat/{row}é.jpg" for row in range(spec.samples)], make_labels(spec))


@pytest.mark.parametrize("spec", [SPEC, SPARSE], ids=["dense", "sparse"])
def test_export_to_npz_holds_what_a_reader_hands_out(root: Path, tmp_path: Path, spec: CacheSpec) -> None:
    facts = facts_of(spec)
    export_cache(root, spec.key, "npz", tmp_path / "cache.npz", facts=facts)
    with np.load(tmp_path / "cache.npz", allow_pickle=False) as arrays, CacheReader(root, spec) as reader:
        for view in range(spec.views):
            np.testing.assert_array_equal(arrays["logits"][view], reader.logits(view))
            for name in STATISTICS:
                np.testing.assert_array_equal(arrays[name][view], reader.statistics(view)[name])
        assert arrays["logits"].dtype == spec.numpy_dtype
        assert arrays["sample_ids"].tolist() == facts.ids
        np.testing.assert_array_equal(arrays["labels"], facts.labels)
        assert CacheSpec.model_validate_json(str(arrays["spec"])) == spec


@pytest.mark.parametrize("spec", [SPEC, SPARSE], ids=["dense", "sparse"])
def test_export_to_parquet_has_a_row_for_each_view_of_each_sample(root: Path, tmp_path: Path, spec: CacheSpec) -> None:
    facts = facts_of(spec)
    export_cache(root, spec.key, "parquet", tmp_path / "cache.parquet", facts=facts)
    table = pq.read_table(tmp_path / "cache.parquet")
    assert len(table) == spec.views * spec.samples
    with CacheReader(root, spec) as reader:
        for view in range(spec.views):
            rows = table.slice(view * spec.samples, spec.samples)
            logits_NC = np.stack(rows["logits"].to_numpy(zero_copy_only=False))
            np.testing.assert_array_equal(logits_NC, reader.logits(view))
            np.testing.assert_array_equal(rows["std"].to_numpy(), reader.statistics(view)["std"])
            assert rows["sample_id"].to_pylist() == facts.ids
            assert set(rows["view"].to_pylist()) == {view}
            np.testing.assert_array_equal(rows["label"].to_numpy(), facts.labels)
    assert CacheSpec.model_validate_json(table.schema.metadata[b"retort"]) == spec


def test_export_to_zarr_is_opened_by_zarr(root: Path, tmp_path: Path) -> None:
    export_cache(root, SPEC.key, "zarr", tmp_path / "cache.zarr.zip", facts=facts_of(SPEC))
    with CacheReader(root, SPEC) as reader, zarr.storage.ZipStore(tmp_path / "cache.zarr.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        for view in range(SPEC.views):
            np.testing.assert_array_equal(group["logits"][view], reader.logits(view))  # type: ignore[index]
    with zipfile.ZipFile(tmp_path / "cache.zarr.zip") as archive:
        assert json.loads(archive.read("samples.json"))["sample_ids"] == facts_of(SPEC).ids


@pytest.mark.parametrize("format", ["npz", "parquet", "zarr"])
def test_export_gives_the_same_bytes_again(root: Path, tmp_path: Path, format: ExportFormat) -> None:
    for name in ("one", "other"):
        export_cache(root, SPEC.key, format, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_export_of_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path, SPEC)
    chunk = tmp_path / SPEC.key / "logits/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CacheCorrupt, match=r"logits/c/1/0/0.*delete the cache"):
        export_cache(tmp_path, SPEC.key, "npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
