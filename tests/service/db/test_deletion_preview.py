"""What a deletion would free, before it: the same bytes as it frees, the same refusals, and nothing changed."""

from pathlib import Path

import pytest

from service.cli import main
from service.db.states import State
from tests.service.db.test_deletion import a_job
from tests.support.filled import make_cache
from tests.support.service_helpers import Api, make_settings, running_api
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation import decoded
from workers.data.preparation.prepare import prepare


def test_deletion_preview_tells_what_would_go_and_why_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_api(make_settings(tmp_path)) as api:
        job_id, live = a_job(api), a_job(api, State.RUNNING)
        run_id = api.records.runs(job_id)[0].id
        teacher_id = api.teacher()
        sha256 = api.client.get(f"/v1/teachers/{teacher_id}").json()["sha256"]
        size_bytes = api.settings.teacher_path(sha256).stat().st_size
        prepare(DigitsDataset(kind="digits"), "test", api.settings.data_root, api.settings.datasets_dir)
        dataset = api.client.post("/v1/datasets", json={"name": "d", "spec": {"kind": "digits"}}).json()["id"]
        key = make_cache(api.settings.caches_dir)
        assert look(api, "jobs", job_id) == (2000, None)
        assert look(api, "runs", run_id) == (1000, None)
        check_refused(api, "jobs", live, "is running")
        check_refused(api, "teachers", teacher_id, f"is used by job {live}")
        check_refused(api, "datasets", dataset, f"is used by job {live}")
        assert main(["--url", api.url, "delete", live, "--dry-run"]) == 1
        assert "is running" in capsys.readouterr().err
        api.client.post(f"/v1/jobs/{live}/cancel")
        assert api.records.move_job(live, State.CANCELLED)
        api.client.post(f"/v1/jobs/{live}/pin")
        check_refused(api, "runs", api.records.runs(live)[0].id, "is pinned")
        assert look(api, "teachers", teacher_id) == (size_bytes, None)
        (copy,) = decoded.copies(api.settings.datasets_dir)
        assert look(api, "datasets", dataset) == (copy.size_bytes, None)
        assert look(api, "caches", key) == (api.client.get(f"/v1/caches/{key}").json()["size_bytes"], None)
        api.client.post(f"/v1/caches/{key}/pin")
        check_refused(api, "caches", key, "is pinned")
        assert api.client.get("/v1/jobs/job_00000000000000000000000000/deletion").status_code == 404
        assert main(["--url", api.url, "delete", job_id, "--dry-run"]) == 0
        assert capsys.readouterr().out.endswith("would free 2.0 KiB\n")
        assert (api.settings.jobs_dir / job_id / run_id).is_dir()
        assert api.client.get(f"/v1/jobs/{job_id}").status_code == 200


def look(api: Api, kind: str, id: str) -> tuple[int, str | None]:
    answer = api.client.get(f"/v1/{kind}/{id}/deletion")
    assert answer.status_code == 200, answer.text
    return answer.json()["frees_bytes"], answer.json()["refused"]


def check_refused(api: Api, kind: str, id: str, why: str) -> None:
    frees_bytes, refused = look(api, kind, id)
    assert frees_bytes == 0
    assert refused is not None
    assert why in refused
