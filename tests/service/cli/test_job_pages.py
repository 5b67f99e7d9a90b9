"""Pages of jobs and runs on a terminal, from made-up documents."""

import io
from typing import Any

from rich.console import Console, RenderableType

from service.cli import render
from service.cli.job_commands.job_pages import preview_page, run_page


def lines(page: RenderableType) -> list[str]:
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    console.print(page)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, above
    return [" ".join(line.split()) for line in text.splitlines()]


def test_preview_page_has_the_classes_and_their_order_as_two_facts() -> None:
    preview = {
        "runs": [],
        "plan": {},
        "labels": {"labelled": {"train": 10}, "classes": 2, "class_names": ["cat", "dog"]},
        "classes": {"note": None, "matched_by": "name"},
    }
    shown = lines(preview_page(preview))
    assert "order of classes the teacher's by name, in the same order" in shown
    assert "classes 2: cat, dog" in shown


def test_run_page_is_of_the_weights_that_leave_and_of_validation_where_test_has_no_labels() -> None:
    nothing = ("retry_of", "error", "waits_for", "started_at", "finished_at", "result")
    run: dict[str, Any] = dict.fromkeys(nothing) | {"id": "run_1", "job_id": "job_1", "name": "n", "state": "succeeded"}
    run |= {"attempt": 1, "epoch": 2, "epochs": 2, "metrics": {"top1": None, "validation_top1": 0.5, "agreement": 0.25}}
    run["metrics"] |= {"ema_top1": None, "validation_ema_top1": 0.75, "ema_agreement": 0.125}
    assert {f"top-1 {render.percent(0.5)}", f"agreement {render.percent(0.25)}"} <= set(lines(run_page(run, [])))
    kept = lines(run_page({**run, "result": {"weights": "ema"}}, []))
    assert {f"top-1 {render.percent(0.75)}", f"agreement {render.percent(0.125)}"} <= set(kept)
