"""A whole job as plain functions, without HTTP, a database or Ray (``ray_cluster.py`` adds the latter).

``python -m workers.pipeline job.json --data-dir DIR --data-root DIR`` runs a job in this process: its caches are
completed (``build_caches``), then its runs are trained one after the other (``loop``). ``train_supervised`` trains a
catalogued network on labels alone, for whoever needs a teacher to start with.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from store import StoreError
from workers.config.dataset import DatasetSpec
from workers.config.draft import JobDraft
from workers.config.job import JobSpec, RunSpec, StudentSpec
from workers.config.task import Folders, TrainingTask
from workers.config.teacher import Preprocessing
from workers.config.training import Training
from workers.config.views import Views
from workers.data.preparation.prepare import prepare_splits
from workers.errors import InvalidDataset, InvalidJob, WorkerError
from workers.events import Emit, ShouldStop, Split, Stage, ignore, never
from workers.methods.catalog import parse_method
from workers.run_files import ARTIFACTS
from workers.teacher.accuracy import measure_teacher
from workers.teacher.build_caches import build_caches, reserve_caches
from workers.teacher.forwards import forwards_avoided, forwards_needed
from workers.teacher.plan_caches import plan_caches
from workers.text_files import read_text
from workers.texts import listed, printable
from workers.training.loop import train_group, train_run
from workers.training.run_handle import RunHandle
from workers.training.share_out import share_out
from workers.unlabelled import count_labelled

# ------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of ``run_job``: result.json of each run, in order, and the teacher's accuracy and cost.

    Attributes:
        teacher_accuracy: on each split that is measured, ``validation`` and ``test``.
        teacher_views_accuracy: on the training views, i.e. of the logits that students have learned from; None where
            nothing was trained.
        teacher_metrics: of each split that is measured, see ``MeasuredTeacher``.
    """

    results: tuple[dict[str, object], ...]
    teacher_accuracy: Mapping[Split, float]
    teacher_views_accuracy: float | None
    teacher_metrics: Mapping[Split, Mapping[str, object]]
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
    """A whole job in this process, group of runs after group: the service without HTTP, database and Ray.

    Its caches are kept from eviction until it ends; there is no quota here, so none is evicted for them.

    Raises:
        WorkerError, store.StoreError: as the parts do; what was finished stays.
    """
    if job.training.actors > 1:
        raise InvalidJob(
            f"training.actors is {job.training.actors}, and this is one process: "
            "use 1, or submit the job to the service"
        )
    device = job.training.device
    plan = plan_caches(job, folders, emit, should_stop, threads=threads, device=device)
    with reserve_caches(plan, folders, 0, emit):
        forwards = build_caches(plan, folders, emit, should_stop, threads=threads, device=device)
        teacher = measure_teacher(plan, folders)
        plan = plan.model_copy(update={"accuracy": teacher.accuracy})
        emit(Stage(stage="training"))
        results = {}
        waiting = job.runs()
        while waiting:
            [group] = share_out(waiting, 1, job.largest_group, batches_of=job.batches_of)
            tasks = [
                plan.task_of_run(job, run, folders, out_dir / f"run-{run.index}", threads=threads) for run in group
            ]
            ended = dict(train_group([RunHandle(task, emit, should_stop) for task in tasks]))
            for place, run in enumerate(group):
                how = ended[place]
                if isinstance(how, Exception):
                    raise how
                results[run.index] = how
            waiting = tuple(run for run in waiting if run not in group)
        epochs_of = {index: int(str(result["epochs"])) for index, result in results.items()}
        return JobOutcome(
            results=tuple(results[run.index] for run in job.runs()),
            teacher_accuracy=teacher.accuracy.measured,
            teacher_views_accuracy=teacher.accuracy.views,
            teacher_metrics=teacher.metrics,
            teacher_forwards=forwards,
            teacher_forwards_avoided=forwards_avoided(forwards_needed(job, plan, epochs_of), forwards),
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

    Raises:
        InvalidDataset: as ``prepare_splits``, or a split has no labels.
    """
    folders = Folders(data_dir=work_dir, data_root=data_root)
    data = prepare_splits(dataset, ("train", "test"), data_root, folders.datasets, emit=emit, should_stop=should_stop)
    unlabelled = [split for split, found in data.items() if not count_labelled(found.labels_N)]
    if unlabelled:
        raise InvalidDataset(
            f"no picture of the {listed(unlabelled)} split has a label: cross-entropy learns from labels, and the "
            "accuracy is measured by them; give the dataset labels"
        )
    task = TrainingTask(
        folders=folders,
        run=RunSpec(index=0, student=StudentSpec(name=student), method=parse_method("ce"), seed=seed),
        training=training,
        views=views or Views(),
        train_fingerprint=data["train"].fingerprint,
        test_fingerprint=data["test"].fingerprint,
        train_cache=None,
        test_cache=None,
        folder=out_dir,
        threads=threads,
    )
    result = train_run(task, emit, should_stop)
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
    parser.add_argument("job", type=Path, help="JSON of workers.config.draft.JobDraft")
    parser.add_argument("--data-dir", type=Path, default=Path("retort-data"))
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=None, help="default: DATA_DIR/local")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    folders = Folders(data_dir=options.data_dir.resolve(), data_root=options.data_root.resolve())
    try:
        job = JobDraft.model_validate_json(read_text(options.job)).job()
        out = options.out or folders.data_dir / "local"
        outcome = run_job(job, folders, out, _print, threads=options.threads)
    except ValidationError as error:
        sys.stderr.write(f"error: {printable(one_line(error))}\n")
        return 1
    except (WorkerError, StoreError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 1
    sys.stdout.write(json.dumps(outcome.results, indent=2) + "\n")
    places = [*((f"{split} split", top1) for split, top1 in outcome.teacher_accuracy.items())]
    if outcome.teacher_views_accuracy is not None:
        places.append(("training views", outcome.teacher_views_accuracy))
    if places:
        sys.stdout.write(f"teacher: top-1 {', '.join(f'{top1:.1%} on the {place}' for place, top1 in places)}\n")
    sys.stdout.write(
        f"teacher forward passes: {outcome.teacher_forwards} run, "
        f"{outcome.teacher_forwards_avoided} avoided; artifacts in {out}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
