"""Exports of caches over HTTP: made once, by Range, with their digest, and removed when nobody asks any longer."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np

from service.client.client import Client
from service.operations.exports import KEPT_S, remove_old
from store import CacheReader
from tests.support.service_helpers import Api
from tests.support.store_cases import make_spec, write_cache

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
