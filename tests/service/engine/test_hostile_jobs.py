"""Jobs whose teacher behaves at the upload and strikes later: what becomes of them, and of the jobs beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from store import CacheReader
from tests.support import hostile_teachers, onnx_models
from tests.support.digits import Digits
from tests.support.processes import job_of, running_service, uploaded
from workers.config.job import JobSpec
from workers.config.task import Folders, InferenceTask
from workers.config.views import NoAugmentation
from workers.errors import InvalidTeacher
from workers.events import Log, PreflightChecked, ignore, never
from workers.onnx.sessions import confined_session
from workers.onnx.sessions.confined_session import SessionLimits
from workers.teacher import sessions
from workers.teacher.build_caches import build_caches
from workers.teacher.inference import inference_batch, open_teacher
from workers.teacher.plan_caches import plan_caches

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = pytest.mark.timeout(900)


def job_with(built: onnx.ModelProto, digits: Digits, folder: Path) -> tuple[JobSpec, Folders]:
    path = onnx_models.save(built, folder / "teacher.onnx")
    spec = digits.teacher_spec.model_copy(update={"path": path, "sha256": None})
    return digits.job("kd").model_copy(update={"teacher": spec}), Folders(data_dir=folder / "data", data_root=folder)


def limited(monkeypatch: pytest.MonkeyPatch, limits: SessionLimits) -> None:
    monkeypatch.setattr(sessions, "limits_of", lambda *_: limits)


def test_job_whose_teacher_loops_in_large_batches_is_refused_before_inference(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what the preflight used to run at once, and at no more than inference does."""
    limited(monkeypatch, SessionLimits(4 << 30, call_s=1.0))
    monkeypatch.setattr(confined_session, "PATIENCE", 0.01)
    built = hostile_teachers.endless(onnx.load(digits.teacher_spec.path), trigger=200)
    job, folders = job_with(built, digits, tmp_path)
    assert inference_batch(job.teacher, digits.train, 4096, NoAugmentation()) == 256
    events: list[object] = []
    with pytest.raises(InvalidTeacher, match="did not finish 256 pictures within"):
        plan_caches(job, folders, events.append, never, threads=1, device="cpu")
    assert not any(isinstance(event, PreflightChecked) for event in events)


def test_job_whose_teacher_takes_all_memory_in_large_batches_is_done_in_smaller_ones(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, SessionLimits(3 << 30))
    built = hostile_teachers.memory_bomb(onnx.load(digits.teacher_spec.path), trigger=200)
    job, folders = job_with(built, digits, tmp_path)
    plan = plan_caches(job, folders, ignore, never, threads=1, device="cpu")
    events: list[object] = []
    build_caches(plan, folders, events.append, never, threads=1, device="cpu")
    told = [event.message for event in events if isinstance(event, Log)]
    assert any("does not hold 256 pictures at once: it goes on with 128" in message for message in told)
    rows = np.arange(plan.train_cache.samples)
    with CacheReader(folders.caches, plan.train_cache) as reader, digits.train_reader() as honest:
        np.testing.assert_allclose(reader.gather(1, rows), honest.gather(1, rows), atol=2e-2)


def test_job_inference_is_confined_and_shares_the_machines_memory(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def limits_of(_: Path, threads: int, sessions: int) -> SessionLimits:
        asked.append((threads, sessions))
        return SessionLimits(3 << 30)

    monkeypatch.setattr(sessions, "limits_of", limits_of)
    order = InferenceTask(
        folders=digits.folders,
        teacher=digits.teacher_spec,
        spec=digits.plan.test_cache,
        threads=1,
        device="cpu",
        sessions=7,
    )
    session = open_teacher(order)._session
    assert type(session).__name__ == "ConfinedSession"
    assert (asked, session.missing) == ([(1, 7)], ())


@pytest.mark.slow
def test_jobs_whose_teacher_loops_end_by_themselves_and_name_it_and_a_good_job_is_done(
    digits: Digits, tmp_path: Path
) -> None:
    """Eight of them, as many as are worked on at once, before a good one of the same client."""
    path = onnx_models.save(hostile_teachers.endless(onnx.load(digits.teacher_spec.path)), tmp_path / "loop.onnx")
    with running_service(tmp_path / "data") as service:
        client = service.client
        good, given = uploaded(service, digits), digits.preprocessing.model_dump(mode="json")
        loop = client.upload_teacher(path, name="the loop", preprocessing=given)["id"]
        bad: Sequence[str] = [client.submit(job_of(loop, "kd"))["id"] for _ in range(8)]
        done = client.wait(client.submit(job_of(good, "kd"))["id"])
        assert done["state"] == "succeeded", done["error"]
        for job_id in bad:
            failed = client.wait(job_id)
            assert failed["state"] == "failed"
            assert failed["error"]["message"].startswith(f"teacher 'the loop' ({loop}): the teacher did not finish ")
            assert "pictures within 60 s of processor time" in failed["error"]["message"]
