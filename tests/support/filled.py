"""What use leaves behind: jobs in every state with their runs, events and files, inserted in bulk; small caches."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import insert

from service.db.database import Database
from service.db.ids import new_id
from service.db.models import ArtifactRecord, EventRecord, JobRecord, Json, RunRecord, TeacherRecord, utc_now
from service.db.states import LIVE, State
from store import CacheWriter
from tests.support.store_cases import make_spec, write_cache
from workers.config.job import Plan

ARTIFACT = b"{}"
METRICS: Json = {"top1": 0.9127, "agreement": 0.97, "kl_to_teacher": 0.03, "ece": 0.02, "nll": 0.31, "loss": 0.52}


def fill(database: Database, teacher: TeacherRecord, plan: Plan, states: Sequence[State]) -> list[str]:
    """A job per state, oldest first, its runs in the same state and with the events that lead there.

    Args:
        teacher: is in the database already.
        plan: of every job.

    Returns:
        The ids of the jobs. A finished run has the artifact ``result.json``, which is ``ARTIFACT``; whoever wants to
        read it writes that file into the data directory.
    """
    now = utc_now()
    jobs, runs, events, artifacts = list[Json](), list[Json](), list[Json](), list[Json]()
    described = plan.model_dump(mode="json")
    epochs = plan.training.epochs
    for state in states:
        job_id = new_id("job")
        jobs.append(
            {
                "id": job_id,
                "name": f"job {len(jobs)}",
                "state": state,
                "teacher_id": teacher.id,
                "teacher": {name: getattr(teacher, name) for name in ("id", "name", "sha256", "output")},
                "plan": described,
                "inference": {"rows_done": 1797, "rows_total": 1797, "rows_per_s": 9000.0, "eta_s": 0.0},
                "caches": {"train": "a" * 64, "test": "b" * 64},
                "teacher_forwards": {"run": 1797, "avoided": 1797 * epochs},
                "teacher_accuracy": 0.97,
                "teacher_views_accuracy": 0.95,
                **_life(state, now),
            }
        )
        for run in plan.runs():
            run_id = new_id("run")
            result = {"last": METRICS, "best": METRICS, "best_epoch": epochs, "seconds": 12.5, "images_per_s": 900.0}
            runs.append(
                {
                    "id": run_id,
                    "job_id": job_id,
                    "index": run.index,
                    "name": run.name,
                    "student": run.student.name,
                    "method": run.method.label,
                    "method_spec": run.method.model_dump(mode="json"),
                    "seed": run.seed,
                    "state": state,
                    "epoch": 0 if state is State.QUEUED else epochs,
                    "epochs": epochs,
                    "metrics": None if state is State.QUEUED else METRICS,
                    "result": result if state is State.SUCCEEDED else None,
                    **_life(state, now),
                }
            )
            if state is State.SUCCEEDED:
                artifacts.append(
                    {
                        "run_id": run_id,
                        "attempt": 1,
                        "name": "result.json",
                        "path": "result.json",
                        "size_bytes": len(ARTIFACT),
                        "sha256": hashlib.sha256(ARTIFACT).hexdigest(),
                        "media_type": "application/json",
                    }
                )
            told: list[Json] = [{"type": "state", "state": State.RUNNING, "error": None}]
            told += [
                {"type": "epoch", "epoch": n, "epochs": epochs, "metrics": {"epoch": n, **METRICS}}
                for n in range(1, epochs + 1)
            ]
            told += [{"type": "state", "state": state, "error": None}]
            events += [
                {
                    "job_id": job_id,
                    "run_id": run_id,
                    "attempt": 1,
                    "n": None if event["type"] == "state" else n,
                    "type": event["type"],
                    "data": {name: value for name, value in event.items() if name != "type"},
                    "at": now,
                }
                for n, event in enumerate(told)
            ]
    with database.write() as session:
        for table, rows in ((JobRecord, jobs), (RunRecord, runs), (EventRecord, events), (ArtifactRecord, artifacts)):
            if rows:
                session.execute(insert(table), rows)
    return [job["id"] for job in jobs]


def _life(state: State, now: datetime) -> Json:
    began = None if state is State.QUEUED else now - timedelta(minutes=5)
    error = {"type": "ContractViolation", "message": "the teacher has other classes"} if state is State.FAILED else None
    ended = None if state in LIVE else now
    return {"attempt": 0 if began is None else 1, "started_at": began, "finished_at": ended, "error": error}


def make_cache(folder: Path, number: int = 0, *, whole: bool = True) -> str:
    """A cache of five rows and three classes, of a teacher for each number, whole or only begun; returns its key."""
    spec = make_spec(samples=5, classes=3, teacher_sha256=f"{number:064x}")
    if whole:
        write_cache(folder, spec)
    else:
        CacheWriter(folder, spec)
    return spec.key
