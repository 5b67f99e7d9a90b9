"""Notes of a report: what a reader of its numbers has to know, in sentences."""

from collections import Counter
from collections.abc import Iterator, Sequence

from service.api.reports.groups import Baseline, SeedGroup
from service.api.reports.rows import SPLITS
from service.api.schemas.reports import Difference, GroupSplit, ReportGroup
from service.db.models import JobRecord
from service.db.states import State
from workers.methods.names import MARK
from workers.texts import listed


def notes_of(
    jobs: Sequence[JobRecord], groups: Sequence[SeedGroup], shown: Sequence[ReportGroup], baseline: Baseline
) -> list[str]:
    """Sentences about runs and seeds that are missing, and about what numbers of so few do not say.

    Args:
        groups, shown: the same, and as documents.
    """
    sentences = [*_of_splits(jobs, shown), *_of_names(groups), *_of_runs(groups), *_of_seeds(groups)]
    sentences += [*_of_extensions(jobs), *_of_baseline(groups, baseline), *_of_other_jobs(jobs, groups)]
    return [*sentences, *_of_differences(groups, shown)]


def _of_splits(jobs: Sequence[JobRecord], shown: Sequence[ReportGroup]) -> Iterator[str]:
    untested = [job.id for job in jobs if job.plan.get("test", "dataset") is None]
    if untested:
        yield f"{listed(untested)} has no test split ('test' is null): nothing was measured on test"
    if any(group.test for group in shown) and not any(group.validation for group in shown):
        yield "there is no validation split: nothing was chosen, so no epoch is called best"


def _of_extensions(jobs: Sequence[JobRecord]) -> Iterator[str]:
    for job in jobs:
        if extends := job.plan.get("extends"):
            before = extends["training"]["epochs"]
            yield f"the run of {job.id} goes on from {extends['run']}, which has trained its first {before} epochs"
        for restart in job.plan.get("training", {}).get("restarts", ()):
            yield (
                f"runs of {job.id} restart warm after {restart['after_epochs']} epochs: learning rate "
                f"{restart['learning_rate']:g}, schedule {restart['schedule']['kind']}"
            )


def _of_names(groups: Sequence[SeedGroup]) -> Iterator[str]:
    numbered = list(dict.fromkeys(group.key[2] for group in groups if MARK in group.key[2]))
    if numbered:
        yield (
            f"{listed(numbered)} is another method than that without the number: they share a label, and differ in "
            "method_spec of their runs"
        )


def _of_runs(groups: Sequence[SeedGroup]) -> Iterator[str]:
    counts = Counter(run.state for group in groups for run in group.runs)
    others = {state: count for state, count in counts.items() if state is not State.SUCCEEDED}
    if others:
        told = ", ".join(f"{count} {state}" for state, count in others.items())
        yield f"{sum(others.values())} of {counts.total()} runs have not succeeded ({told}); they are in no mean"


def _of_seeds(groups: Sequence[SeedGroup]) -> Iterator[str]:
    single = [group.name for group in groups if len(group.succeeded) == 1]
    if single:
        yield (
            f"one seed ranks noise: {listed(single)} has one seed, so no deviation or interval says whether it "
            "differs from another; three seeds or more do"
        )


def _of_baseline(groups: Sequence[SeedGroup], baseline: Baseline) -> Iterator[str]:
    students = {group.key[1] for group in groups if group.succeeded}
    compared = {group.key[1] for group in groups if group.baseline is not None}
    if (method := baseline.label) is None:
        return
    lacking = sorted(
        student
        for student in students - compared
        if not any(group.key[1:] == (student, method) and group.succeeded for group in groups)
    )
    if lacking:
        yield (
            f"no run of the baseline {method!r} of {listed(lacking)} has succeeded: no difference is told there; name "
            "another method with `baseline`"
        )


def _of_other_jobs(jobs: Sequence[JobRecord], groups: Sequence[SeedGroup]) -> Iterator[str]:
    """Say of each group whose baseline is of another job what else differs, which may be the whole difference."""
    by_id = {job.id: job for job in jobs}
    for group in groups:
        if group.baseline is None or group.baseline.key[0] == group.key[0]:
            continue
        own, other = by_id[group.key[0]], by_id[group.baseline.key[0]]
        unlike = [part for part in ("training", "views") if own.plan.get(part) != other.plan.get(part)]
        unlike += ["teacher"] if own.teacher["sha256"] != other.teacher["sha256"] else []
        unlike += ["first weights"] if _first_weights(own, group.key[1]) != _first_weights(other, group.key[1]) else []
        rest = f", which differs in {listed(unlike)}" if unlike else ""
        yield f"difference of {group.name} of {own.id} is to {group.baseline.key[2]} of {other.id}{rest}"


def _first_weights(job: JobRecord, student: str) -> str | None:
    """SHA-256 of the weights that a student begins with; None where they are drawn at random."""
    blocks = [job.plan, *job.plan.get("added", [])]
    named = [each for block in blocks for each in block["students"] if each["name"] == student]
    return next((each["init"]["sha256"] for each in named if isinstance(each.get("init"), dict)), None)


def _of_differences(groups: Sequence[SeedGroup], shown: Sequence[ReportGroup]) -> Iterator[str]:
    unpaired = {
        group.name: sorted(group.succeeded.keys() - group.baseline.succeeded.keys())
        for group in groups
        if group.baseline is not None
    }
    told = [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in unpaired.items() if seeds]
    if told:
        yield f"differences leave out what has no run of the baseline with the same seed: {listed(told)}"
    equal = [
        f"{name} on {split}" for name, split, found in _differences(groups, shown) if found.n > 1 and found.low is None
    ]
    if equal:
        yield f"all differences of {listed(equal)} are equal: a t interval would have no width, and none is given"
    if any(of_split.samples for group in shown for of_split in (group.test, group.validation) if of_split is not None):
        yield (
            "McNemar's exact test is of the two runs of one seed; seeds are not pooled, for they share the rows, and "
            "its p-value says nothing about other seeds"
        )


def _differences(groups: Sequence[SeedGroup], shown: Sequence[ReportGroup]) -> Iterator[tuple[str, str, Difference]]:
    for group, document in zip(groups, shown, strict=True):
        for split in SPLITS:
            of_split: GroupSplit | None = getattr(document, split)
            if of_split is not None and of_split.difference is not None:
                yield group.name, split, of_split.difference
