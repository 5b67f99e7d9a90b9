"""A whole job as plain functions, without HTTP, a database or Ray (``cluster.py`` adds the latter).

``python -m workers.pipeline job.json --data-dir DIR --data-root DIR`` runs a job in this process: its caches are
completed (``caching``), then its runs are trained one after the other (``train``). ``train_supervised`` trains a
catalogued network on labels alone, for whoever needs a teacher to start with.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from store import StoreError
from workers.artifacts import ARTIFACTS
from workers.caching import CachePlan, build_caches, forwards_avoided, plan_caches, prepare_data, teacher_accuracy
from workers.config import (
    DatasetSpec,
    Folders,
    JobSpec,
    Preprocessing,
    RunSpec,
    StudentSpec,
    Training,
    TrainingOrder,
    Views,
)
from workers.errors import WorkerError
from workers.events import Emit, ShouldStop, Stage, ignore, never
from workers.methods import parse_method
from workers.train import train_run

# ------------------------------------------------------------------------------------------------------------- runs


def order_run(
    job: JobSpec,
    plan: CachePlan,
    run: RunSpec,
    folders: Folders,
    folder: Path,
    *,
    threads: int,
    earlier: tuple[Path, ...] = (),
    told_epoch: int = 0,
    memory_fraction: float = 1.0,
) -> TrainingOrder:
    """The order for one run of a job, to be trained in ``folder``."""
    return TrainingOrder(
        folders=folders,
        run=run,
        training=job.training,
        views=job.views,
        train_fingerprint=plan.train_cache.dataset_fingerprint,
        test_fingerprint=plan.test_cache.dataset_fingerprint,
        train_cache=plan.train_cache,
        test_cache=plan.test_cache,
        folder=folder,
        earlier=earlier,
        told_epoch=told_epoch,
        threads=threads,
        memory_fraction=memory_fraction,
    )


@dataclass(frozen=True)
class JobOutcome:
    """What ``run_job`` leaves: result.json of each run, in order, and the teacher's cost."""

    results: tuple[dict[str, object], ...]
    teacher_accuracy: float
    teacher_forwards: int
    teacher_forwards_avoided: int


def run_job(
    job: JobSpec,
    folders: Folders,
    out_dir: Path,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    *,
    threads: int = 1,
) -> JobOutcome:
    """A whole job in this process, run after run: the service without HTTP, database and Ray.

    Raises:
        WorkerError, store.StoreError: as the parts do; what was finished stays.
    """
    plan = plan_caches(job, folders, emit, should_stop, threads=threads)
    forwards = build_caches(plan, folders, emit, should_stop, threads=threads)
    emit(Stage(stage="training"))
    results = []
    for run in job.runs():
        folder = out_dir / f"run-{run.index}"
        order = order_run(job, plan, run, folders, folder, threads=threads)
        results.append(train_run(order, emit, should_stop))
    return JobOutcome(
        results=tuple(results),
        teacher_accuracy=teacher_accuracy(plan, folders),
        teacher_forwards=forwards,
        teacher_forwards_avoided=forwards_avoided(job, plan, forwards),
    )


# ------------------------------------------------------------------------- a model without a teacher


@dataclass(frozen=True)
class SupervisedModel:
    """A network trained on labels alone, as an ONNX file that can be uploaded as a teacher."""

    onnx_path: Path
    preprocessing: Preprocessing
    accuracy: float


def train_supervised(
    dataset: DatasetSpec,
    student: str,
    training: Training,
    *,
    data_root: Path,
    work_dir: Path,
    out_dir: Path,
    seed: int = 0,
    threads: int = 1,
    views: Views | None = None,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> SupervisedModel:
    """Train a catalogued network with plain cross-entropy and export it.

    Args:
        out_dir: receives ``artifacts/student.onnx`` and the other files of a run.
    """
    folders = Folders(data_dir=work_dir, data_root=data_root)
    train, test = prepare_data(dataset, folders, emit, should_stop)
    order = TrainingOrder(
        folders=folders,
        run=RunSpec(index=0, student=StudentSpec(name=student), method=parse_method("ce"), seed=seed),
        training=training,
        views=views or Views(),
        train_fingerprint=train.fingerprint,
        test_fingerprint=test.fingerprint,
        train_cache=None,
        test_cache=None,
        folder=out_dir,
        threads=threads,
    )
    result = train_run(order, emit, should_stop)
    artifacts = out_dir / ARTIFACTS
    config = json.loads((artifacts / "config.json").read_text())
    last = result["last"]
    assert isinstance(last, dict)
    return SupervisedModel(
        onnx_path=artifacts / "student.onnx",
        preprocessing=Preprocessing.model_validate(config["preprocessing"]),
        accuracy=float(last["top1"]),
    )


# --------------------------------------------------------------------------------------------- main


def _print(event: object) -> None:
    sys.stdout.write(f"{event}\n")


def one_line(error: ValidationError) -> str:
    """Every mistake of a description in one line: where it is, and what is allowed there."""
    mistakes = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'the job'}: {item['msg']}" for item in mistakes)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m workers.pipeline job.json``: run a job without the service."""
    parser = argparse.ArgumentParser(prog="python -m workers.pipeline", description=main.__doc__)
    parser.add_argument("job", type=Path, help="JSON of workers.config.JobSpec")
    parser.add_argument("--data-dir", type=Path, default=Path("retort-data"))
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=None, help="default: DATA_DIR/local")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    folders = Folders(data_dir=options.data_dir.resolve(), data_root=options.data_root.resolve())
    try:
        job = JobSpec.model_validate_json(options.job.read_text())
        out = options.out or folders.data_dir / "local"
        outcome = run_job(job, folders, out, _print, threads=options.threads)
    except ValidationError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 1
    except (WorkerError, StoreError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(outcome.results, indent=2) + "\n")
    sys.stdout.write(
        f"teacher forward passes: {outcome.teacher_forwards} run, "
        f"{outcome.teacher_forwards_avoided} avoided; artifacts in {out}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
