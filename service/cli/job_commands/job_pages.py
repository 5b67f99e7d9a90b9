"""Pages of jobs and runs on a terminal: the runs of a dry run, a job with its runs, a run with its files."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.job_commands.cost import cost_table
from service.cli.job_commands.job_labels import labels
from service.cli.job_commands.recipes import filled_in
from service.client.kept_metrics import kept_prefix, kept_top1
from service.client.transport import Document


def preview_page(preview: Document) -> RenderableType:
    """Page of a dry run: its runs, the picture sizes, the warnings."""
    rows = [(run["student"], run["method"], str(run["seed"])) for run in preview["runs"]]
    # A service of an earlier version has neither sizes nor warnings.
    views = preview.get("views") or {}
    sizes = {name: "x".join(map(str, views.get(name) or ())) for name in ("student", "teacher")}
    seen = render.facts({f"{name} sees": size and f"{size} pixels of each box" for name, size in sizes.items()})
    warnings = [Text(f"warning: {warning}") for warning in preview.get("warnings", [])]
    table = render.table(("student", "method", "seed"), rows)
    recipe = render.facts({"recipe": filled_in(preview["plan"]), **_labels(preview.get("labels") or {})})
    # A service of an earlier version estimates nothing.
    cost = [Text(), cost_table(preview["cost"])] if preview.get("cost") else []
    classes = render.facts({"order of classes": _classes(preview.get("classes"))})
    return Group(Text(f"{len(rows)} runs, none started"), table, *cost, Text(), seen, classes, recipe, *warnings)


def _classes(planned: Document | None) -> str:
    """Sentence about the order of the classes; of an earlier service, or where only decoding tells, that it is open."""
    if planned is None:
        return "matched with the teacher's when the pictures have been decoded"
    as_they_are = {
        "position": "taken in their order, no names tell",
        "name": "the teacher's by name, in the same order",
    }
    return str(planned["note"] or as_they_are[planned["matched_by"]])


def _labels(shown: Document) -> dict[str, str | None]:
    """Labels by split and the classes; a service of an earlier version shows neither."""
    counts = ", ".join(f"{count:,} of {split}" for split, count in (shown.get("labelled") or {}).items())
    names = shown.get("class_names") or ()
    listed = f": {', '.join(names[:10])}{', ...' if shown['classes'] > len(names[:10]) else ''}" if names else ""
    by = " (by the teacher's outputs)" if shown.get("named_by") == "teacher" else ""
    return {"labels": counts or None, "classes": f"{shown['classes']}{by}{listed}" if shown else None}


def job_page(job: Document, runs: Sequence[Document]) -> RenderableType:
    """Page of a job with its runs."""
    caches = job["caches"] or {}
    pairs = {
        "job": job["id"],
        **labels(job),
        "state": render.state(job["state"]),
        "stage": job["stage"] if job["state"] == "running" else None,
        "error": (job["error"] or {}).get("message"),
        "set aside": _set_aside(job),
        "created": render.moment(job["created_at"]),
        "started": render.moment(job["started_at"]),
        "finished": render.moment(job["finished_at"]),
        "expected end": _expected(job),
        "priority": str(job["priority"]) if job["priority"] else None,
        "runs at once": str(job["parallel_runs"]) if job["parallel_runs"] else None,
        "retry of": job["retry_of"],
        "teacher": _teachers(job),
        "recipe": filled_in(job["plan"]),
        "caches": ", ".join(f"{split} {key[:12]}" for split, key in caches.items()),
        "cost": render.forwards(job),
        "webhook": _webhook(job),
    }
    headers = ("run", "state", "name", "epoch>", "expected", "top-1>", "error or why it is set aside")
    rows = [
        (
            run["id"],
            render.state(run["state"]),
            run["name"],
            f"{run['epoch']}/{run['epochs']}",
            render.left(run.get("eta")),
            render.percent(kept_top1(run["metrics"] or {}, run["result"] or {})),
            (run["error"] or {}).get("message") or _set_aside(run) or "",
        )
        for run in runs
    ]
    return Group(render.facts(pairs), Text(), render.table(headers, rows))


def _teachers(job: Document) -> str:
    """Id of the teacher; of several those of all, with their weights."""
    several = job.get("teachers") or []
    if len(several) < 2:
        return str(job["teacher"])
    return " + ".join(f"{each['weight']:g} {each['id']}" for each in several)


def run_page(run: Document, files: Sequence[Document]) -> RenderableType:
    """Page of a run with its files."""
    metrics, result = run["metrics"] or {}, run["result"] or {}
    pairs = {
        "run": run["id"],
        "job": run["job_id"],
        "retry of": run["retry_of"],
        "name": run["name"],
        "state": render.state(run["state"]),
        "error": (run["error"] or {}).get("message"),
        "set aside": _set_aside(run),
        "waits for": run["waits_for"],
        "attempt": str(run["attempt"]),
        "epoch": f"{run['epoch']}/{run['epochs']}",
        "started": render.moment(run["started_at"]),
        "finished": render.moment(run["finished_at"]),
        "expected end": _expected(run),
        "top-1": render.percent(kept_top1(metrics, result)),
        "agreement": render.percent(metrics.get(f"{kept_prefix(result)}agreement")),
        "ECE": render.percent(metrics.get(f"{kept_prefix(result)}ece")),
        "loss": render.number(metrics.get("train_loss"), 4),
    }
    rows = [(file["name"], render.size(file["size_bytes"]), file["sha256"]) for file in files]
    parts: list[RenderableType] = [render.facts(pairs)]
    if rows:
        parts += [Text(), render.table(("file", "size>", "sha256"), rows)]
    return Group(*parts)


def counts(job: Document) -> str:
    """Number of a job's runs in each state."""
    counts = job["progress"]["runs"]
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _webhook(job: Document) -> str | None:
    """Delivery of a job's webhook in words; a service of an earlier version does not send one."""
    delivery = job.get("webhook")
    if not delivery:
        return None
    text = f"{delivery['status'].replace('_', ' ')}, {delivery['attempts']} attempts, {delivery['url']}"
    if delivery["last_error"]:
        text += f"; last: {delivery['last_error']}"
    if delivery["next_attempt_at"]:
        text += f"; next: {render.moment(delivery['next_attempt_at'])}"
    return text


def _set_aside(document: Document) -> str | None:
    """Reason why a job or run is set aside; a service of an earlier version does not send one."""
    return (document.get("set_aside") or {}).get("message")


def _expected(document: Document) -> str | None:
    """Expected end of a job or run; a service of an earlier version expects none."""
    eta = document.get("eta")
    return eta and f"{render.moment(eta['expected_at'])}, {render.left(eta)} (by {eta['based_on']})"
