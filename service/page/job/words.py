"""Words for numbers of a job: durations, percentages, estimates, progress."""

from collections.abc import Mapping
from datetime import datetime

from service.page import texts
from service.page.cost import seconds_left
from service.page.texts import duration as duration
from service.page.viewer import Document

NOTHING = "–"
_ENDED = ("succeeded", "failed", "cancelled")


def percent(value: float | None, digits: int = 2) -> str:
    """Fraction as a percentage, to the digit in which methods differ."""
    return texts.percent(value, digits)


def number(value: float | None, digits: int = 3) -> str:
    """Number with some digits after the point."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def spread(found: Mapping[str, float | None] | None, factor: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """Estimate as mean ± standard deviation; of one seed the mean alone."""
    if found is None or found["mean"] is None:
        return NOTHING
    deviation = "" if found["std"] is None else f" ± {factor * found['std']:.{digits}f}"
    return f"{factor * found['mean']:.{digits}f}{deviation}{unit}"


def ended_runs(job: Document) -> str:
    """Runs that have ended, of all, with those that are at work or have failed."""
    runs = job["progress"]["runs"]
    parts = [f"{sum(runs[state] for state in _ENDED)} of {sum(runs.values())} runs ended"]
    parts += [f"{count} {state}" for state, count in runs.items() if count and state not in ("succeeded", "queued")]
    return ", ".join(parts)


def fraction_done(job: Document) -> float:
    """Part of a job's runs that has ended, 0 to 1."""
    runs = job["progress"]["runs"]
    return float(sum(runs[state] for state in _ENDED) / max(1, sum(runs.values())))


def inference_words(job: Document) -> str:
    """Progress of the teacher's inference; empty before and after it."""
    found = job["progress"].get("inference")
    if not found or found["rows_done"] >= found["rows_total"]:
        return ""
    rate = f", {found['rows_per_s']:,.0f} rows/s" if found.get("rows_per_s") else ""
    left = f", {duration(found['eta_s'])} left" if found.get("eta_s") else ""
    return f"teacher's inference: {found['rows_done']:,} of {found['rows_total']:,} rows{rate}{left}"


def eta_words(document: Document, now: datetime | None = None) -> str:
    """Time until a job or run is expected to end, with what that is based on; empty where nobody knows."""
    left = seconds_left(document, now)
    if left is None:
        return ""
    eta = document["eta"]
    based = f" (by {eta['based_on']})" if eta.get("based_on") else ""
    return f"about {duration(left)} left{based}" if left > 0 else f"due any moment{based}"


def restart_words(restart: Document) -> str:
    """Warm restart of a training's learning rate: when it is, its rate and its schedule."""
    after, rate = texts.count(restart["after_epochs"]), restart["learning_rate"]
    return f"after {after} epochs: {restart['schedule']['kind']}, learning rate {rate:g}"


def webhook_words(delivery: Mapping[str, str | int | None]) -> str:
    """Status of the delivery of a job's webhook, and why the last attempt failed."""
    attempts = f" after {delivery['attempts']} attempts" if delivery["attempts"] else ""
    why = f": {delivery['last_error']}" if delivery["last_error"] else ""
    return f"{str(delivery['status']).replace('_', ' ')}{attempts}{why}"
