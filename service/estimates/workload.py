"""Workload of a job: the seconds of its caches, its processes and each of its runs, by what was measured. Pure."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pydantic import BaseModel, ConfigDict

from service.estimates.measured import MeasuredTimes, pictures_of_plan, recipe_of_plan
from service.estimates.rates import ProcessRate, Rate, Wanted, epoch_rate, process_rate
from service.estimates.schedule import Load, WaitingRun, expected_ends
from workers.config.job import Plan, RunSpec
from workers.methods.papers.base import Preset
from workers.training.share_out import share_out


class Slots(BaseModel):
    """Slots of an engine: processes that fit on its cores, and on its GPUs (0 without one). JSON of a column."""

    model_config = ConfigDict(frozen=True)

    cpu: int
    gpu: int = 0

    def device_of(self, plan: Plan) -> str:
        """Device that the runs of a job are trained on."""
        return "cuda" if self.gpu and plan.training.device != "cpu" else "cpu"

    def of(self, device: str) -> int:
        """Processes at once on a device."""
        return self.gpu if device == "cuda" else self.cpu


@dataclass(frozen=True)
class JobRows:
    """Rows of a job: pictures of an epoch, of the splits that are evaluated after it, and rows of its caches."""

    trained: int
    measured: int
    cached: int


def rows_of(plan: Plan, samples: Mapping[str, int]) -> JobRows:
    """Rows of a job.

    Args:
        samples: pictures of each split of the dataset; of a holdout, of ``validation`` if that is known, else about.
    """
    train = samples["train"]
    held_out = 0
    if plan.validation is not None:
        held_out = samples.get("validation") or max(1, round(plan.validation.holdout * train))
    test = samples.get("test", 0) if plan.test is not None else 0
    measured = test + (held_out or samples.get("validation", 0))
    of_train = 0 if plan.evaluate else train * plan.views.count
    return JobRows(train - held_out, measured, of_train + measured)


@dataclass(frozen=True)
class Workload:
    """Workload of the training of a job.

    Attributes:
        epochs: of each run.
        epoch: seconds of an epoch of each run, by index; a run without was never measured.
        process: None where no process was measured.
        missing: sentences about what was never measured.
    """

    epochs: int
    epoch: Mapping[int, Rate]
    process: ProcessRate | None
    missing: Sequence[str]

    @property
    def basis(self) -> list[str]:
        """Ways in which it was measured, each once."""
        of_process = [] if self.process is None else [f"start and end: {self.process.basis}"]
        return [*dict.fromkeys(f"epochs: {rate.basis}" for rate in self.epoch.values()), *of_process]


def workload_of(
    plan: Plan, rows: JobRows, measured: MeasuredTimes, slots: Slots | None, *, batches: Mapping[int, int] | None = None
) -> Workload:
    """Estimate the training of a job from earlier runs.

    Args:
        slots: of the engine; None where none has ever led.
        batches: ``batch_numbers`` of the plan, if they are known.
    """
    runs, document = plan.runs(), plan.model_dump(mode="json", include={"dataset", "views"})
    pictures = pictures_of_plan(document)
    device = None if slots is None else slots.device_of(plan)
    numbers = batch_numbers(plan) if batches is None else batches
    groups = _groups(plan, runs, 1 if slots is None or device is None else slots.of(device), numbers)
    size = {run.index: len(group) for group in groups for run in group}
    # Whoever is not among the first processes comes later, in one like theirs.
    later = len(groups[0]) if groups else 1
    wanted = Wanted(
        student="",
        method="",
        batch_size=plan.training.batch_size,
        pictures=pictures,
        recipe=recipe_of_plan(document),
        device=device,
        trained=rows.trained,
        measured=rows.measured,
        group=later,
        at_once=float(len(groups)),
    )

    @cache
    def rate(student: str, method: str, views: int, group: int) -> Rate | None:
        return epoch_rate(measured, replace(wanted, student=student, method=method, views=views, group=group))

    @cache
    def views_of(method: Preset) -> int:
        return method.expand().views

    found = {
        run.index: rate(run.student.name, run.method.label, views_of(run.method), size.get(run.index, later))
        for run in runs
    }
    unknown = dict.fromkeys(run.student.name for run in runs if found[run.index] is None)
    on = f" on {device}" if device else ""
    missing = [f"no run of {name} on such pictures has ever ended here{on}" for name in unknown]
    process = None
    if runs:
        process = process_rate(measured, runs[0].student.name, pictures, device, runs=later)
        if process is None:
            missing.append(f"no process that trains has ever ended here{on}")
    known = {index: each for index, each in found.items() if each is not None}
    return Workload(plan.training.epochs, known, process, missing)


def _groups(plan: Plan, runs: Sequence[RunSpec], slots: int, batches: Mapping[int, int]) -> list[list[RunSpec]]:
    """Runs that share a process, where the whole machine is there for the job."""
    processes = max(1, slots // plan.training.actors)
    return share_out(runs, processes, plan.largest_group, batches_of=lambda run: batches[run.index])


def batch_numbers(plan: Plan) -> dict[int, int]:
    """A number for each run's batches, by its index: equal for runs that can share a process.

    Numbers are compared much faster than the views that they stand for.
    """
    known = dict[Hashable, int]()
    return {run.index: known.setdefault(plan.batches_of(run), len(known)) for run in plan.runs()}


def load_of(plan: Plan, workload: Workload) -> Load:
    """Load of a job none of whose runs has begun, its caches being complete. All of it was measured."""
    assert workload.process is not None
    runs, epochs = plan.runs(), workload.epochs - plan.epochs_before
    batches = batch_numbers(plan)
    return Load(
        id="",
        processes=plan.training.actors,
        largest_group=plan.largest_group,
        start_s=workload.process.start_s,
        end_s=workload.process.end_s,
        tail_s=workload.process.tail_s,
        waiting=[WaitingRun(str(run.index), run.index, epochs * workload.epoch[run.index].seconds) for run in runs],
        batches_of=lambda run: batches[run.index],
    )


def training_s(plan: Plan, workload: Workload, slots: Slots) -> float | None:
    """Seconds from complete caches to the end of the last run, if the machine has nothing else to do.

    None where something was never measured, or the job needs more slots than there are.
    """
    if workload.missing:
        return None
    return expected_ends([load_of(plan, workload)], slots.of(slots.device_of(plan))).get("")
