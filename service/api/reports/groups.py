"""Groups of a report: the runs of one student and method over seeds, and their differences to a baseline."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.api.reports import statistics
from service.api.reports.rows import SPLITS, Split, figures
from service.api.schemas.reports import (
    BASELINE,
    ClassAccuracy,
    Difference,
    Estimate,
    GroupSplit,
    ReportGroup,
    SampleTest,
    TeacherResult,
    TeacherSplit,
)
from service.db.queries.report_queries import ReportedRun
from service.db.states import State
from service.errors import InvalidRequest
from workers.texts import listed

_ESTIMATED = ("top1", "top5", "nll", "ece", "nll_calibrated", "ece_calibrated", "agreement", "kl")
# Job, student, method.
GroupKey = tuple[str, str, str]


@dataclass(frozen=True)
class Baseline:
    """Baseline that groups are compared with.

    Attributes:
        method: None for ``ce`` where there is such a run; with ``job_id``, for each group's own method.
        job_id: None for the group's own job, else the first that has such runs.
    """

    method: str | None = None
    job_id: str | None = None

    @property
    def label(self) -> str | None:
        """The method, where it is one for all."""
        return self.method or (BASELINE if self.job_id is None else None)


@dataclass
class SeedGroup:
    """The runs of one job, student and method.

    Attributes:
        succeeded: by seed.
        figures: of those, by split and seed, see ``rows.figures``.
        baseline: the group it is compared with.
    """

    key: GroupKey
    runs: list[ReportedRun] = field(default_factory=list)
    succeeded: dict[int, ReportedRun] = field(default_factory=dict)
    figures: dict[Split, dict[int, dict[str, Any]]] = field(default_factory=dict)
    baseline: "SeedGroup | None" = None

    @property
    def name(self) -> str:
        """Student and method."""
        return " ".join(self.key[1:])

    def top1(self, split: Split) -> dict[int, float]:
        """Accuracy by seed."""
        found = {seed: known["top1"] for seed, known in self.figures[split].items()}
        return {seed: top1 for seed, top1 in found.items() if top1 is not None}

    def pairs(self) -> list[tuple[ReportedRun, ReportedRun]]:
        """Runs that succeeded with the baseline's of the same seed, (baseline, method)."""
        others = {} if self.baseline is None else self.baseline.succeeded
        return [(others[seed], run) for seed, run in self.succeeded.items() if seed in others]


def group_runs(runs: Iterable[ReportedRun], baseline: Baseline) -> list[SeedGroup]:
    """Groups of runs, in the order of their first ones, each with the group that it is compared with.

    Raises:
        InvalidRequest: the baseline was named, and no run has that method.
    """
    groups: dict[GroupKey, SeedGroup] = {}
    for run in runs:
        key = run.job_id, run.student, run.method
        group = groups.setdefault(key, SeedGroup(key))
        group.runs.append(run)
        if run.state is State.SUCCEEDED:
            group.succeeded[run.seed] = run
    for group in groups.values():
        for split in SPLITS:
            group.figures[split] = {seed: figures(run, split) for seed, run in group.succeeded.items()}
    methods = {method: None for _, _, method in groups}
    if groups and baseline.method is not None and baseline.method not in methods:
        raise InvalidRequest(
            f"no run has the method {baseline.method!r:.200}, which was named as the baseline: "
            f"there are {listed(methods)}",
            "#/baseline",
        )
    # Of each student and method the first job that has a result.
    first: dict[tuple[str, str], SeedGroup] = {}
    for (_, student, method), group in groups.items():
        if group.succeeded:
            first.setdefault((student, method), group)
    for (job_id, student, own), group in groups.items():
        method = baseline.label or own
        found = groups.get((baseline.job_id or job_id, student, method))
        if baseline.job_id is None and (found is None or not found.succeeded):
            found = first.get((student, method), found)
        group.baseline = None if found is group else found
    return list(groups.values())


def show_groups(
    groups: Sequence[SeedGroup],
    teachers: Mapping[str, TeacherResult],
    confidence: float,
    tests: Mapping[tuple[GroupKey, Split], list[SampleTest]] | None = None,
) -> list[ReportGroup]:
    """Documents of groups.

    Args:
        teachers: by job id.
        confidence: of the intervals.
        tests: McNemar's tests of each group and split; None where they were not asked for.
    """
    shown = [
        ReportGroup(
            job_id=group.key[0],
            student=group.key[1],
            method=group.key[2],
            runs=dict(Counter(run.state for run in group.runs)),
            seeds=list(group.succeeded),
            **{split: _show_split(group, split, teachers[group.key[0]]) for split in SPLITS},
        )
        for group in groups
    ]
    for split in SPLITS:
        _add_differences(groups, shown, split, confidence)
        for group, document in zip(groups, shown, strict=True):
            if tests is not None and (of_split := getattr(document, split)) is not None:
                of_split.samples = tests.get((group.key, split), [])
    return shown


def _show_split(group: SeedGroup, split: Split, teacher: TeacherResult) -> GroupSplit | None:
    known = list(group.figures[split].values())
    estimates = {name: _show(statistics.estimate(run[name] for run in known)) for name in _ESTIMATED}
    if not any(estimates.values()):
        return None
    worst, best = _extreme_classes(known, getattr(teacher, split))
    return GroupSplit(**estimates, best_class=best, worst_class=worst, difference=None, samples=None)


def _show(found: statistics.MeanOfSample | None) -> Estimate | None:
    return None if found is None else Estimate(mean=found.mean, std=found.std, n=found.n)


def _extreme_classes(
    known: Iterable[Mapping[str, Any]], teacher: TeacherSplit | None
) -> tuple[ClassAccuracy | None, ClassAccuracy | None]:
    """Worst and best class of runs, with the teacher's accuracy on them."""
    accuracies = [run["per_class"] for run in known if run["per_class"]]
    # Of jobs on different datasets that somebody has insisted on.
    if not accuracies or len({len(of_run) for of_run in accuracies}) > 1:
        return None, None
    found = statistics.extremes(statistics.class_means(accuracies))
    if found is None:
        return None, None
    taught = (None if teacher is None else teacher.per_class) or []
    worst, best = (
        ClassAccuracy(index=index, accuracy=accuracy, teacher=taught[index] if index < len(taught) else None)
        for index, accuracy in (found.worst, found.best)
    )
    return worst, best


def _add_differences(
    groups: Sequence[SeedGroup], shown: Sequence[ReportGroup], split: Split, confidence: float
) -> None:
    """Set ``difference`` of each group that has a baseline with a seed in common; all intervals at once."""
    found: list[tuple[GroupSplit, SeedGroup, dict[int, float]]] = []
    for group, document in zip(groups, shown, strict=True):
        of_split: GroupSplit | None = getattr(document, split)
        if of_split is None or group.baseline is None:
            continue
        differences = statistics.paired_differences(group.top1(split), group.baseline.top1(split))
        if differences:
            found.append((of_split, group.baseline, differences))
    means = [statistics.estimate(differences.values()) for _, _, differences in found]
    intervals = statistics.t_intervals(means, confidence)
    for (of_split, baseline, differences), mean, interval in zip(found, means, intervals, strict=True):
        assert mean is not None
        of_split.difference = Difference(
            baseline=baseline.key[2],
            baseline_job_id=baseline.key[0],
            seeds=list(differences),
            mean=mean.mean,
            std=mean.std,
            n=mean.n,
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
            p_value=None if interval is None else interval.p_value,
        )
