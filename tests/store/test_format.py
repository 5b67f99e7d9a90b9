"""The format on disk: what any Zarr client sees, and what this Retort expects of every byte."""

import hashlib
import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from store import CacheReader, CacheSpec
from store.statistics import STATISTICS
from tests.support.store_cases import make_logits, make_spec, tree, write_cache


@pytest.fixture(scope="module", params=["float16", "float32"])
def spec(request: pytest.FixtureRequest) -> CacheSpec:
    return make_spec(views=2, dtype=request.param)


@pytest.fixture(scope="module")
def group(spec: CacheSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches"), spec).path


def test_format_folder_holds_exactly_the_documented_files(group: Path, spec: CacheSpec) -> None:
    blocks = [f"{view}/{within}" for view in (0, 1) for within in (0, 1, 2)]
    expected = {"zarr.json", "COMPLETE", "logits/zarr.json"}
    expected |= {f"logits/c/{block}/0" for block in blocks}
    expected |= {f"{name}/zarr.json" for name in STATISTICS}
    expected |= {f"{name}/c/{block}" for name in STATISTICS for block in blocks}
    expected |= {f"commits/{block.replace('/', '-')}.json" for block in blocks}
    assert set(tree(group)) == expected
    assert group.name == spec.key


def test_format_arrays_are_read_by_any_zarr_client(group: Path, spec: CacheSpec) -> None:
    opened = zarr.open_group(group, mode="r", zarr_format=3)
    for view in (0, 1):
        truth = make_logits(spec, view)
        np.testing.assert_array_equal(opened["logits"][view], truth.astype(spec.dtype))
        np.testing.assert_array_equal(opened["max"][view], truth.max(axis=1))
    logits = opened["logits"]
    assert isinstance(logits, zarr.Array)
    assert logits.chunks == (1, 4096, 10)
    assert logits.shards is None
    assert np.isnan(logits.fill_value)
    assert logits.metadata.dimension_names == ("view", "sample", "class")


def test_format_codecs_are_exactly_little_endian_bytes_and_crc32c(group: Path) -> None:
    for name in ("logits", *STATISTICS):
        metadata = json.loads((group / name / "zarr.json").read_text())
        assert metadata["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        assert metadata["fill_value"] == "NaN"
        assert metadata["data_type"] == (json.loads(_spec_json(group))["dtype"] if name == "logits" else "float32")


def _spec_json(group: Path) -> str:
    return json.dumps(json.loads((group / "zarr.json").read_text())["attributes"]["retort"]["spec"])


def test_manifest_has_version_key_spec_and_provenance(group: Path, spec: CacheSpec) -> None:
    manifest = json.loads((group / "zarr.json").read_text())["attributes"]["retort"]
    assert set(manifest) == {"format_version", "key", "spec", "created_at", "provenance"}
    assert manifest["format_version"] == 1
    assert manifest["key"] == spec.key
    assert CacheSpec(**manifest["spec"]) == spec
    assert manifest["provenance"] == {"device": "cpu"}


def test_chunk_file_is_flat_rows_padded_with_nan_and_their_checksum(group: Path, spec: CacheSpec) -> None:
    content = (group / "logits/c/1/2/0").read_bytes()
    rows = np.frombuffer(content[:-4], spec.numpy_dtype).reshape(4096, 10)
    np.testing.assert_array_equal(rows[:100], make_logits(spec, 1)[8192:].astype(spec.dtype))
    assert np.isnan(rows[100:]).all()
    assert int.from_bytes(content[-4:], "little") == google_crc32c.value(content[:-4])


def test_commit_record_has_the_checksum_of_each_files_payload(group: Path) -> None:
    record = json.loads((group / "commits/1-2.json").read_text())
    assert record["rows"] == 100
    assert set(record["files"]) == {"logits/c/1/2/0", *(f"{name}/c/1/2" for name in STATISTICS)}
    for name, file in record["files"].items():
        content = (group / name).read_bytes()
        assert file == {"size": len(content), "crc32c": google_crc32c.value(content[:-4])}


def test_completion_has_the_digest_of_the_commit_records_in_block_order(group: Path, spec: CacheSpec) -> None:
    records = [f"commits/{view}-{within}.json" for view in (0, 1) for within in (0, 1, 2)]
    digest = hashlib.sha256(b"".join((group / name).read_bytes() for name in records)).hexdigest()
    assert json.loads((group / "COMPLETE").read_text()) == {
        "key": spec.key,
        "blocks": 6,
        "commits_sha256": digest,
        "provenance": {},
    }


def test_statistics_are_of_the_logits_before_they_were_rounded(group: Path, spec: CacheSpec) -> None:
    truth = make_logits(spec, 1).astype(np.float64)
    found = CacheReader.from_key(group.parent, spec.key).statistics(1)
    np.testing.assert_allclose(found["sharpness"], np.log(np.exp(truth).sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(found["std"], truth.std(axis=1, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(found["min"], make_logits(spec, 1).min(axis=1))
    if spec.dtype == "float16":
        rounded = truth.astype(np.float16).astype(np.float64)
        assert np.abs(found["std"] - rounded.std(axis=1, ddof=1)).max() > 1e-5
