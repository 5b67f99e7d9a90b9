"""Exports of caches over HTTP: made once, by Range, with their digest, and removed when nobody asks any longer."""

import fcntl
import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest

from service.client.client import Client
from service.operations.exports import KEPT_S, export_bytes, export_once, facts_of, remove_old
from store import CacheReader
from store.export import ExportFormat, SampleFacts
from tests.support.service_helpers import Api
from tests.support.store_cases import make_spec, write_cache
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.data.preparation.sample_ids import FILE

pytest_plugins = ["tests.support.service_fixtures"]
SPEC = make_spec(samples=300)


def test_cache_export_comes_by_range_with_its_digest_and_is_made_once(api: Api) -> None:
    write_cache(api.settings.caches_dir, SPEC)
    url = f"/v1/caches/{SPEC.key}/export"
    whole = api.client.get(url)
    assert whole.headers["etag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    assert whole.headers["content-disposition"] == f'attachment; filename="{SPEC.key[:12]}-train.npz"'
    with np.load(io.BytesIO(whole.content)) as arrays, CacheReader(api.settings.caches_dir, SPEC) as reader:
        np.testing.assert_array_equal(arrays["logits"][0], reader.logits(0))
        # The dataset is not decoded here.
        assert "sample_ids" not in arrays
    [made] = api.settings.exports_dir.glob("*.npz")
    before = made.stat().st_ino
    part = api.client.get(url, headers={"Range": "bytes=100-199", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert api.client.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert made.stat().st_ino == before


def test_cache_export_refuses_what_is_not_there(api: Api) -> None:
    assert api.client.get(f"/v1/caches/{'0' * 64}/export").json()["type"].endswith("not-found")
    assert api.client.get(f"/v1/caches/{'0' * 64}/export", params={"format": "csv"}).status_code == 422


def test_cache_export_of_the_client_is_checked_and_whole(api: Api, tmp_path: Path) -> None:
    write_cache(api.settings.caches_dir, SPEC)
    with Client(str(api.client.base_url)) as client:
        path = client.export_cache(SPEC.key, tmp_path / "cache.zarr.zip", format="zarr")
    [made] = api.settings.exports_dir.glob("*.zarr.zip")
    assert path.read_bytes() == made.read_bytes()


def test_remove_old_removes_exports_that_nobody_has_asked_for(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.npz").write_bytes(b"content")
        (tmp_path / f"{name}.npz.sha256").write_text("digest")
    long_ago = time.time() - KEPT_S - 1
    os.utime(tmp_path / "old.npz.sha256", (long_ago, long_ago))
    remove_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.npz", "new.npz.sha256"]


def test_remove_old_leaves_an_export_that_is_being_made(tmp_path: Path) -> None:
    lock = tmp_path / "slow.npz.lock"
    long_ago = time.time() - KEPT_S - 1
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.utime(lock, (long_ago, long_ago))
        remove_old(tmp_path)
        assert lock.exists()
    remove_old(tmp_path)
    assert not lock.exists()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_room_for_an_export_is_that_of_its_decoded_rows(tmp_path: Path, format: ExportFormat) -> None:
    spec = make_spec(samples=300, classes=100, encoding="uint8", dtype="float32", views=2)
    write_cache(tmp_path / "caches", spec)
    facts = SampleFacts([f"train/{row:04}.png" for row in range(300)], np.arange(300))
    asked = []
    made = export_once(
        tmp_path / "exports",
        tmp_path / "caches",
        spec.key,
        format,
        facts=facts,
        check_room=lambda: asked.append(export_bytes(spec, format, 1, facts)),
    )
    assert asked[0] >= 2 * 300 * 100 * spec.numpy_dtype.itemsize
    # Headers are not counted.
    assert made.path.stat().st_size <= asked[0] + 4096


def test_export_with_what_is_known_of_the_samples_is_another_file(tmp_path: Path) -> None:
    write_cache(tmp_path / "caches", SPEC)
    paths = set()
    for facts in (None, SampleFacts(list(map(str, range(300))), np.zeros(300, np.int64))):
        made = export_once(
            tmp_path / "exports", tmp_path / "caches", SPEC.key, "npz", facts=facts, check_room=lambda: None
        )
        with np.load(made.path) as arrays:
            assert ("sample_ids" in arrays) == (facts is not None)
        paths.add(made.path)
    assert len(paths) == 2


def test_samples_of_a_holdout_are_numbered_as_in_the_split_that_it_is_cut_from(tmp_path: Path) -> None:
    train = prepare(DigitsDataset(), "train", tmp_path, tmp_path)
    held = hold_out(train, Holdout(holdout=0.1), tmp_path)
    # As an earlier version has prepared it.
    (train.path / FILE).unlink()
    facts = facts_of(tmp_path, make_spec(dataset_fingerprint=held.fingerprint))
    rows = held.rows_of(train)
    assert facts is not None
    assert rows is not None
    assert list(facts.ids) == [str(row) for row in rows]
