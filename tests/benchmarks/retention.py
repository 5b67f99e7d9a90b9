"""A day's growth of a busy service, and what is left of it after retention: ``python -m tests.benchmarks.retention``.

Jobs are posted, claimed, told of and ended by the service's own code, on SQLite in a temporary folder; only the
training is left out: metrics are random numbers of the size of real ones, and artifacts files of the size that
resnet8's have. Their ends are spread over the day that has just passed. Then events are compacted, and half of the day
is deleted.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update

from service.db.database import Database, upgrade_to_head
from service.db.deletions.deletion import Deleter
from service.db.deletions.retention import DAY_S, Limits, Retention
from service.db.deletions.usage import usage
from service.db.engine_queries import EngineQueries
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.states import State
from service.engine.attempt_files import list_artifacts
from service.settings import Settings
from tests.support.service_helpers import make_plan, make_settings, teacher_row
from workers.logs import configure
from workers.run_files import ARTIFACTS

# Bytes of what a run of resnet8 leaves beside its log.
FILES = {"student.safetensors": 312_000, "student.onnx": 318_000, "config.json": 2_500, "result.json": 4_000}
LOG_BYTES = 3_000
# As workers.training.loop writes them for kd.
METRICS = """
    epoch lr images_per_s train_loss train_accuracy train_ce train_kd student_temperature_mean student_temperature_std
    teacher_temperature_mean teacher_temperature_std top1 top5 nll ece agreement kl_to_teacher seconds
"""
# An event every two seconds of training: those of an epoch of ten seconds.
STEPS = 5


class Day:
    """A service whose jobs are made up.

    Args:
        epochs: of each run.
    """

    def __init__(self, settings: Settings, database: Database, epochs: int, seed: int) -> None:
        self.settings, self.database = settings, database
        self.api_queries, self.records = ApiQueries(database), EngineQueries(database)
        self.deletion = Deleter(database, settings)
        self.retention = Retention(settings, self.deletion)
        self._epochs = epochs
        self._random = random.Random(seed)
        self._teacher, _ = self.api_queries.add_teacher(teacher_row(), lambda: None)

    def job(self, ended_s_ago: float) -> None:
        """A job of two runs, from its post to its end."""
        plan = make_plan(training={"epochs": self._epochs})
        job, _ = self.api_queries.add_job(plan, self._teacher, None)
        assert self.records.claim_job() is not None
        for run in self.records.runs(job.id):
            (begun,) = self.records.start_attempts([run.id])
            self.records.record_events(job.id, run.id, begun.attempt, list(enumerate(self._events())))
            folder = self.settings.jobs_dir / job.id / run.id / f"a{begun.attempt}"
            (folder / ARTIFACTS).mkdir(parents=True)
            for name, size_bytes in FILES.items():
                (folder / ARTIFACTS / name).write_bytes(self._random.randbytes(size_bytes))
            (folder / "log.jsonl").write_bytes(bytes(LOG_BYTES))
            artifacts = list_artifacts(folder, self.settings.data_dir)
            assert self.records.record_result(run.id, begun.attempt, artifacts, {"last": self._metrics(self._epochs)})
        assert self.records.move_job(job.id, State.SUCCEEDED)
        with self.database.write() as session:
            at = utc_now() - timedelta(seconds=ended_s_ago)
            session.execute(update(JobRecord).where(JobRecord.id == job.id).values(finished_at=at))

    def _events(self) -> list[Json]:
        events: list[Json] = []
        for epoch in range(1, self._epochs + 1):
            step = {"type": "step", "epoch": epoch, "epochs": self._epochs, "steps": 391}
            for number in range(STEPS):
                rates = {"loss": self._random.random(), "images_per_s": 1e4 * self._random.random()}
                events.append({**step, "step": 78 * number, **rates})
            events.append({"type": "epoch", "epoch": epoch, "epochs": self._epochs, "metrics": self._metrics(epoch)})
        return [*events, {"type": "finished", "result": {"last": self._metrics(self._epochs)}}]

    def _metrics(self, epoch: int) -> Json:
        return {"epoch": float(epoch)} | {name: self._random.random() for name in METRICS.split()[1:]}

    def line(self, what: str, seconds: float) -> Sequence[str]:
        """A row of the table."""
        self.database.checkpoint()
        found = usage(self.settings, self.deletion.database)
        with self.database.read() as session:
            events, packed = (
                session.scalar(select(func.count()).select_from(table)) or 0
                for table in (EventRecord, PackedEventsRecord)
            )
        counts = (f"{count:,}" for count in (found.jobs, events, packed))
        sizes = (f"{size / 1e6:,.1f}" for size in (found.database_bytes, found.jobs_bytes))
        return what, *counts, *sizes, f"{seconds:.1f}"


def measure(folder: Path, jobs: int, epochs: int, seed: int) -> list[Sequence[str]]:
    """The rows of the table."""
    settings = make_settings(folder)
    settings.make_folders()
    upgrade_to_head(settings.database)
    with closing(Database(settings.database)) as database:
        day = Day(settings, database, epochs, seed)
        rows = [day.line("before", 0.0)]
        began_s = time.monotonic()
        for number in range(jobs):
            # At least two minutes ago: streams are told of an end before its events are compacted.
            day.job(120 + (DAY_S - 120) * (jobs - number - 0.5) / jobs)
        rows.append(day.line("a day's jobs", time.monotonic() - began_s))
        for what, limits in (
            ("events compacted", Limits(events_max_age_s=0)),
            ("jobs of the first half deleted", Limits(jobs_max_age_s=DAY_S / 2)),
            ("all jobs deleted", Limits(jobs_max_count=0)),
        ):
            began_s = time.monotonic()
            day.retention.collect(limits)
            rows.append(day.line(what, time.monotonic() - began_s))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.retention", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    configure("warning")
    with tempfile.TemporaryDirectory(prefix="retort-retention-") as folder:
        rows = measure(Path(folder), options.jobs, options.epochs, options.seed)
    print("| | jobs | events | packed rows | database MB | files MB | seconds |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
