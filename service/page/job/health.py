"""Runs that need attention: failed, lost, set aside, or learning much worse than they or the others have."""

import statistics
from collections.abc import Iterable, Mapping

from service.page.job.measures import RunCurve

# What is looked at, the first that a run has.
HEALTH_METRICS = ("validation_top1", "top1")
# Below this part of what was to be expected, a run is said to be bad.
_PART = 0.5
_OTHERS_MIN = 2
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 16
_LIVE = frozenset({"queued", "running", "pausing", "paused", "cancelling", "lost"})


def is_live(state: str) -> bool:
    """Whether a job or run in this state has not ended."""
    return state in _LIVE


def complaints(runs: Iterable[RunCurve]) -> dict[str, str]:
    """Complaints about runs by id, in words; what has ended well or was cancelled is not looked at."""
    all_runs = list(runs)
    medians = _medians(all_runs)
    found: dict[str, str] = {}
    for run in all_runs:
        if run.state == "failed":
            found[run.id] = "failed: the run says why"
        elif run.state == "lost":
            found[run.id] = "its process was lost; it is tried again"
        elif is_live(run.state) and (words := _of_accuracy(run, medians)):
            found[run.id] = words
    return found


def _curve(run: RunCurve) -> Mapping[int, float]:
    return next((run.values[name] for name in HEALTH_METRICS if run.values.get(name)), {})


def _medians(runs: list[RunCurve]) -> dict[str, tuple[int, float]]:
    """Epoch in which a live run is compared, and the median accuracy of the runs that have it, by the run's id.

    That is its last one that others have got to: a run that learns nothing may well be the fastest.
    """
    curves = {run.id: _curve(run) for run in runs}
    ends = sorted((max(curve) for curve in curves.values() if curve), reverse=True)
    if len(ends) <= _OTHERS_MIN:
        return {}
    wanted = {
        run.id: max((epoch for epoch in curves[run.id] if epoch <= ends[_OTHERS_MIN]), default=0)
        for run in runs
        if is_live(run.state)
    }
    values = {epoch: [curve[epoch] for curve in curves.values() if epoch in curve] for epoch in set(wanted.values())}
    medians = {epoch: statistics.median(found) for epoch, found in values.items() if len(found) > _OTHERS_MIN}
    return {run_id: (epoch, medians[epoch]) for run_id, epoch in wanted.items() if epoch in medians}


def _of_accuracy(run: RunCurve, medians: Mapping[str, tuple[int, float]]) -> str:
    curve = _curve(run)
    if not curve:
        return ""
    epoch = max(curve)
    now, best = curve[epoch], max(curve.values())
    if now < _PART * best:
        return f"diverging: top-1 fell from {100 * best:.1f} % to {100 * now:.1f} % in epoch {epoch}"
    compared, median = medians.get(run.id, (0, 0.0))
    if now < _PART * median:
        theirs = f"{100 * median:.1f} %" if compared == epoch else f"{100 * median:.1f} % in epoch {compared}"
        return f"far behind: top-1 {100 * now:.1f} % in epoch {epoch}, half of the runs have {theirs}"
    return ""


def sparkline(run: RunCurve) -> str:
    """Accuracy over the epochs as text, from its least to its greatest: ``▁▄▆█``."""
    curve = _curve(run)
    epochs = sorted(curve)
    if len(epochs) < 2:
        return ""
    points = min(_SPARK_POINTS, len(epochs))
    values = [curve[epochs[place * (len(epochs) - 1) // (points - 1)]] for place in range(points)]
    least, width = min(values), max(values) - min(values)
    if not width:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - least) / width * (len(_BARS) - 1))] for value in values)
