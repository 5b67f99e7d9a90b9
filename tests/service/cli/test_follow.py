"""What a person sees of a job: the same events as bars on a terminal and as lines in a log."""

import io
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from service.cli import render as terminal
from service.cli.job_commands.follow import render
from service.cli.job_commands.job_view import JobView

JOB = {"id": "job_1", "name": "digits"}
RUNS = [{"id": f"run_{n}", "name": f"cnn_s {method} seed 0", "epochs": 4} for n, method in enumerate(["ce", "kd"])]


def event(kind: str, run_id: str | None = None, **data: object) -> dict[str, Any]:
    return {"type": kind, "run_id": run_id, "data": data}


def progress(done: int, **more: object) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "cache": "a" * 64,
        "split": "train",
        "rows_total": 1000,
        "rows_per_s": 250.0,
        "eta_s": 3.0,
        **more,
    }
    return event("inference_progress", rows_done=done, **fields)


def ready(inferred: int) -> dict[str, Any]:
    return event(
        "cache_ready", cache="a" * 64, split="train", views=1, rows_total=1000, rows_inferred=inferred, seconds=4.0
    )


def drawn(view: JobView, runs_max: int = 20) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    console.print(render(view, runs_max))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, above
    return text


@pytest.fixture
def view() -> JobView:
    return JobView.of(JOB, RUNS)


def test_job_view_of_inference_has_rows_rate_and_what_is_left(view: JobView) -> None:
    view.apply(event("state", state="running", error=None))
    view.apply(event("stage", stage="inference"))
    view.apply(progress(250))
    assert "digits: inference" in drawn(view)
    assert "250 / 1,000 rows, 250 rows/s, 3.0 s left" in drawn(view)
    assert view.apply(ready(1000)) == "inference, train: 1,000 / 1,000 rows in 4.0 s"


def test_job_view_of_a_cache_that_was_there_shows_no_work(view: JobView) -> None:
    view.apply(progress(1000, rows_per_s=None, eta_s=0.0))
    assert view.apply(ready(0)) == "inference, train: 1,000 / 1,000 rows, all from the cache"


def test_job_view_of_the_preflight_has_the_accuracy_on_pictures_and_on_views(view: JobView) -> None:
    told = {"rows": 512, "accuracy": 0.991, "provider": "CPU"}
    said = view.apply(event("contract_checked", **told))
    assert said == "the teacher is right on 99.1 % of 512 labelled rows, on CPU"
    said = view.apply(event("contract_checked", views_accuracy=0.625, **told))
    assert said == "the teacher is right on 99.1 % of 512 labelled rows and 62.5 % of their views, on CPU"


def test_job_view_of_a_run_has_epoch_accuracy_and_loss(view: JobView) -> None:
    view.apply(event("state", "run_1", state="running", error=None))
    assert "digits: training" not in drawn(view)
    view.apply(event("state", state="running", error=None))
    assert "digits: training" in drawn(view)
    assert "starting" in drawn(view)
    view.apply(event("step", "run_1", epoch=2, epochs=4, step=5, steps=10, loss=0.5, images_per_s=1.0))
    assert view.runs["run_1"].done == 1.5
    assert "epoch 2/4, loss 0.500" in drawn(view)
    line = view.apply(event("epoch", "run_1", epoch=2, epochs=4, metrics={"top1": 0.915, "train_loss": 0.25}))
    assert line == "cnn_s kd seed 0: epoch 2/4, top-1 91.5 %, loss 0.250"
    assert "queued" in drawn(view)


def test_job_view_of_a_failure_has_its_reason(view: JobView) -> None:
    error = {"type": "NotFinite", "message": "loss is nan at step 7"}
    view.apply(event("state", "run_0", state="running", error=None))
    assert view.apply(event("state", "run_0", state="failed", error=error)).endswith("failed: loss is nan at step 7")
    view.apply(event("state", state="failed", error={"type": "RunsFailed", "message": "1 of 2 runs failed"}))
    assert "failed: loss is nan at step 7" in drawn(view)
    assert "1 of 2 runs failed" in drawn(view)


def test_job_view_of_a_run_that_starts_again_is_running(view: JobView) -> None:
    for state in ("running", "lost", "running"):
        view.apply(event("state", "run_0", state=state, error=None))
    assert view.runs["run_0"].state == "running"


def test_follow_waits_for_a_paused_job_and_says_what_it_waits_for(view: JobView) -> None:
    view.apply(event("state", state="running", error=None))
    view.apply(event("step", "run_0", epoch=2, epochs=4, step=5, steps=10, loss=0.5, images_per_s=1.0))
    assert view.apply(event("state", state="pausing", error=None)) == "job pausing"
    for run in ("run_0", "run_1"):
        view.apply(event("state", run, state="paused", error=None))
    told = "paused, this waits until `retort resume job_1`"
    assert view.apply(event("state", state="paused", error=None)) == f"job {told}"
    text = drawn(view)
    assert "digits: paused; runs: 2 paused" in text
    assert told in text
    assert "epoch 2/4, loss 0.500, paused" in text
    assert text.count("epoch") == 1, "one has not begun"
    view.apply(event("state", state="queued", error=None))
    assert told not in drawn(view)


def test_follow_render_shows_what_is_left_while_the_job_goes_on(view: JobView) -> None:
    view.apply(event("state", state="running", error=None))
    for seconds, shown in ((190.4, "2 queued; about 3:10 left"), (-5, "2 queued; about to end")):
        view.eta = {"expected_at": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}
        assert shown in drawn(view)
    view.apply(event("state", state="paused", error=None))
    assert "about" not in drawn(view)


def test_job_view_takes_runs_that_are_added_while_it_is_followed(view: JobView) -> None:
    """Their states are not the job's."""
    view.apply({"type": "state", "run_id": None, "data": {"state": "running"}})
    view.apply({"type": "state", "run_id": "run_9", "data": {"state": "failed", "error": {"message": "no"}}})
    assert view.state == "running"
    assert view.runs["run_9"].text == "failed: no"


def test_job_view_keeps_a_warning(view: JobView) -> None:
    assert view.apply(event("log", "run_0", level="warning", message="no CUDA")) == "warning: cnn_s ce seed 0: no CUDA"
    assert "no CUDA" in drawn(view)


def test_job_view_ignores_an_event_of_a_later_version(view: JobView) -> None:
    assert view.apply(event("something_new", "run_0", x=1)) == ""


def test_follow_render_shows_those_of_many_runs_that_train() -> None:
    runs = [{"id": f"run_{n}", "name": f"run number {n}", "epochs": 4} for n in range(30)]
    view = JobView.of(JOB, runs)
    for n in range(20):
        view.apply(event("state", f"run_{n}", state="running", error=None))
        if n < 18:
            view.apply(event("state", f"run_{n}", state="succeeded", error=None))
    text = drawn(view, runs_max=4)
    assert "run number 18" in text
    assert "run number 19" in text
    assert "(4 of 30 shown)" in text
    assert "18 succeeded, 2 running, 10 queued" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (7.24, "7.2 s"), (59.99, "1:00"), (185.0, "3:05"), (7385.0, "2:03:05")]
)
def test_render_duration_reads_well(seconds: float | None, text: str) -> None:
    assert terminal.duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 31, "2.0 GiB")]
)
def test_render_size_reads_well(size_bytes: int, text: str) -> None:
    assert terminal.size(size_bytes) == text


def test_render_writes_out_what_a_terminal_would_obey_and_cuts_none_of_it() -> None:
    name = "\x1b[8m" * 4 + "end"
    view = JobView.of({"id": "job_1", "name": name}, [{"id": "run_0", "name": name, "epochs": 4}])
    view.apply(event("log", "run_0", level="warning", message=name))
    shown = drawn(view)
    assert "\x1b" not in shown
    assert shown.count("\\x1b[8m" * 4 + "end") == 4
    view.apply(event("state", "run_0", state="failed", error={"message": name}))
    view.apply(event("state", state="failed", error={"message": name}))
    assert "\x1b" not in drawn(view)


def test_render_moment_has_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine, as of that day: a log from elsewhere can be compared with it."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0")
    time.tzset()
    try:
        told = [terminal.moment(iso) for iso in ("2026-11-29T15:05:00.7Z", "2026-07-01T15:05:00Z", None)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told == ["2026-11-29 16:05:00+01:00", "2026-07-01 17:05:00+02:00", ""]


def test_job_view_has_the_top1_of_validation_where_test_has_no_labels(view: JobView) -> None:
    view.apply(event("epoch", "run_0", epoch=1, epochs=4, metrics={"top1": None, "validation_top1": 0.5}))
    assert view.runs["run_0"].top1 == 0.5
