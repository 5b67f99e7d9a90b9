"""Cost of a job on a terminal: what a dry run says of rows, caches, forward passes, seconds and break-even."""

from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.client.transport import Document

_PARTS = ("preparing", "inference", "training", "total")


def cost_table(cost: Document) -> RenderableType:
    """Tables of the caches, and of what the job takes; below them how that was measured, and what never was."""
    seconds, forwards = cost["seconds"], cost["forwards"]
    headers = ("cache", "rows>", "there already>", "arrays>", "on disk, at most>", "key")
    caches = render.table(headers, map(_cache_row, cost["caches"]))
    pairs = {
        "teacher": f"{forwards['to_run']:,} forward passes to run, {forwards['cached']:,} of {forwards['needed']:,} "
        "cached",
        **{name: _seconds(seconds[name]) for name in _PARTS},
        "break-even": _break_even(cost["break_even"]),
        "other work": _other_work(cost["other_work"]),
        "cached rows": forwards["cached_known_by"],
        "measured by": "; ".join(seconds["measured_by"]),
        "not known": "; ".join(seconds["missing"]),
    }
    return Group(caches, Text(), render.facts(pairs))


def _cache_row(cache: Document) -> list[str]:
    about = "" if cache["is_exact"] else "about "
    return [
        cache["split"],
        f"{about}{cache['rows']:,}",
        f"{cache['rows_cached']:,}",
        about + render.size(cache["chunks_bytes"]),
        about + render.size(cache["full_bytes"]),
        (cache["key"] or "")[:12],
    ]


def _seconds(seconds: float | None) -> str:
    return "not known, it was never measured" if seconds is None else render.duration(seconds)


def _break_even(found: Document) -> str:
    if found["runs"] is None:
        return "no run needs a teacher"
    text = f"after {found['runs']:.2g} runs ({found['epochs']:.3g} epochs): a live teacher would be run on "
    text += f"{found['live_forwards']:,} pictures"
    saved = found["saved_seconds"]
    if saved is None:
        return text
    return text + f", {render.duration(abs(saved))} {'more' if saved >= 0 else 'less'} than inference takes"


def _other_work(found: Document) -> str:
    if not found["jobs"]:
        return ""
    until = "" if found["expected_at"] is None else f", until {render.moment(found['expected_at'])}"
    return f"{found['jobs']} jobs are queued or worked on{until}"
