"""Cost of a job before it starts, and its expected end, as the API estimates them."""

from datetime import UTC, datetime

from service.page.elements import facts
from service.page.texts import count, duration
from service.page.viewer import Document
from service.units import size


def show_cost(cost: Document) -> None:
    """Show rows, bytes, forwards, seconds and break-even of a dry run, each with how it is known."""
    forwards, seconds, even = cost["forwards"], cost["seconds"], cost["break_even"]
    with facts() as fact:
        fact("Pictures", ", ".join(f"{split} {count(number)}" for split, number in cost["samples"].items()))
        for cache in cost["caches"]:
            about = "" if cache["is_exact"] else "about "
            rows = f"{about}{count(cache['rows'])} rows ({cache['views']} views)"
            fact(f"Cache, {cache['split']}", f"{rows}, {about}{size(cache['chunks_bytes'])}")
        run = f"{count(forwards['to_run'])} to run, {count(forwards['cached'])} cached"
        fact("Teacher forwards", f"{run} ({forwards['cached_known_by']})")
        fact("Expected time", _time(seconds))
        if even["runs"] is not None:
            fact("Break-even", f"after {even['runs']:.2g} of its runs, {even['epochs']:.2g} epochs")
        if even["saved_seconds"] is not None:
            fact("Saved against a live teacher", _saved(even["saved_seconds"]))
        if cost["other_work"]["jobs"]:
            fact("Other jobs before it", count(cost["other_work"]["jobs"]))


def _time(seconds: Document) -> str:
    if seconds["total"] is None:
        return f"not known: {'; '.join(seconds['missing'])}"
    parts = (f"{name} {duration(seconds[name])}" for name in ("preparing", "inference", "training"))
    return f"{duration(seconds['total'])} ({', '.join(parts)}), by {'; '.join(seconds['measured_by'])}"


def _saved(saved_s: float) -> str:
    return duration(saved_s) if saved_s >= 0 else f"none: it costs {duration(-saved_s)} more"


def seconds_left(document: Document, now: datetime | None = None) -> float | None:
    """Seconds until the expected end of a job or run, negative once that is past; None where none is known."""
    eta = document.get("eta")
    if not eta or not eta.get("expected_at"):
        return None
    return (datetime.fromisoformat(eta["expected_at"]) - (now or datetime.now(UTC))).total_seconds()


def time_left(document: Document) -> str:
    """Time until the expected end of a job or run; a dash where none is known."""
    left_s = seconds_left(document)
    if left_s is None:
        return duration(None)
    return duration(left_s) if left_s > 0 else "any moment"
