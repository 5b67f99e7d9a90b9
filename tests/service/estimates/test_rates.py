"""Rates: which of what was measured counts, and what is said of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.estimates.measured import MeasuredCaches, MeasuredRun, measured_of, recipe_of_plan
from service.estimates.rates import Wanted, WantedTeacher, epoch_rate, inference_rate, process_rate

MIXED = {
    "views": {
        "augmentation": {
            "recipe": "crop_flip",
            "mixup": {"alpha": 0.2},
            "second_view": {"color_jitter": {}, "mixup": None},
        }
    }
}
AT = datetime(2026, 11, 30, tzinfo=UTC)
# 10 epochs of 1,000 pictures at 1,000 a second, and half a second to evaluate 500 after each.
RUN = MeasuredRun(
    job_id="job",
    process="p1",
    student="cnn_s",
    method="kd",
    batch_size=64,
    pictures="digits",
    recipe="none",
    device="cpu",
    trained=1000,
    measured=500,
    epochs=10,
    seconds=15.0,
    images_per_s=1000.0,
    started_at=AT,
    finished_at=AT + timedelta(seconds=20),
)
WANTED = Wanted(
    "cnn_s", "kd", 64, "digits", recipe="none", device="cpu", trained=1000, measured=500, group=1, at_once=1.0
)
CACHES = MeasuredCaches(
    "job", "a" * 64, 1000, "null", pictures="digits", recipe="none", rows=1000, seconds=4.0, beside_s=6.0
)
TEACHER = WantedTeacher("a" * 64, 1000, "null", pictures="digits", recipe="none")


def test_epoch_rate_grows_with_what_is_trained_and_what_is_evaluated() -> None:
    measured = measured_of([RUN])
    rate = epoch_rate(measured, WANTED)
    assert rate is not None
    assert rate.seconds == pytest.approx(1.5)
    assert rate.basis == "1 run of cnn_s by kd, batch 64, 1 in a process, 1 at once, on cpu"
    twice = epoch_rate(measured, replace(WANTED, trained=2000, measured=1000))
    assert twice is not None
    assert twice.seconds == pytest.approx(3.0)


@pytest.mark.parametrize("change", [{"student": "cnn_m"}, {"pictures": "cifar10"}, {"device": "cuda"}])
def test_epoch_rate_of_what_was_never_measured_is_none(change: dict[str, Any]) -> None:
    assert epoch_rate(measured_of([RUN]), replace(WANTED, **change)) is None


def test_epoch_rate_takes_the_most_alike_and_says_what_differs() -> None:
    slower = replace(RUN, process="p2", batch_size=16, seconds=45.0)
    measured = measured_of([slower, RUN])
    same, other = epoch_rate(measured, WANTED), epoch_rate(measured, replace(WANTED, batch_size=16, method="dkd"))
    assert same is not None
    assert same.seconds == pytest.approx(1.5)
    assert other is not None
    assert other.seconds == pytest.approx(4.5)
    assert other.basis.endswith("(method dkd was never measured)")


def test_epoch_rate_of_two_views_takes_twice_the_training_and_mixed_views_are_another_recipe() -> None:
    two = epoch_rate(measured_of([RUN]), replace(WANTED, views=2))
    assert two is not None
    assert two.seconds == pytest.approx(2.5)
    mixed = replace(RUN, process="p2", recipe=recipe_of_plan(MIXED), images_per_s=500.0, seconds=25.0)
    measured = measured_of([RUN, mixed])
    plain, of_mixed = epoch_rate(measured, WANTED), epoch_rate(measured, replace(WANTED, recipe=recipe_of_plan(MIXED)))
    assert plain is not None
    assert of_mixed is not None
    assert (plain.seconds, of_mixed.seconds) == pytest.approx((1.5, 2.5))
    never = epoch_rate(measured_of([RUN]), replace(WANTED, recipe=recipe_of_plan(MIXED)))
    assert never is not None
    assert never.basis.endswith("(augmentation crop_flip with mixup, second views (color_jitter) was never measured)")


def test_inference_rate_of_mixed_views_is_that_of_such_views() -> None:
    mixed = replace(CACHES, recipe=recipe_of_plan(MIXED), seconds=8.0)
    wanted = replace(TEACHER, recipe=mixed.recipe)
    rate = inference_rate(measured_of([], [CACHES, mixed]), wanted)
    assert rate is not None
    assert rate.rows_per_s == 125.0
    never = inference_rate(measured_of([], [CACHES]), wanted)
    assert never is not None
    assert "views crop_flip with mixup, second views (color_jitter) were never measured" in never.basis


def test_process_rate_tells_start_from_the_end_of_the_first_run_and_those_of_others() -> None:
    # Two runs share a process: 20 s of epochs, 4 s to start, 3 s until the first has ended and 2 s until the other has.
    runs = [
        replace(RUN, seconds=10.0, finished_at=AT + timedelta(seconds=seconds), end_s=seconds - 24.0)
        for seconds in (29, 27)
    ]
    rate = process_rate(measured_of(runs), "cnn_s", "digits", "cpu", runs=2)
    assert rate is not None
    assert (rate.start_s, rate.end_s, rate.tail_s) == pytest.approx((4.0, 3.0, 2.0))
    assert process_rate(measured_of(runs), "cnn_s", "digits", "cuda", runs=2) is None


def test_process_rate_of_packed_events_divides_what_was_measured() -> None:
    rate = process_rate(measured_of([RUN]), "cnn_s", "digits", "cpu", runs=1)
    assert rate is not None
    assert (rate.start_s, rate.end_s, rate.tail_s) == pytest.approx((2.5, 2.5, 0.0))


def test_runs_that_trained_at_the_same_time_are_counted() -> None:
    beside = replace(RUN, process="p2", started_at=AT + timedelta(seconds=10), finished_at=AT + timedelta(seconds=30))
    assert [run.at_once for run in measured_of([RUN, beside]).runs] == [1.5, 1.5]


def test_inference_rate_is_of_the_same_teacher_or_of_one_of_its_size() -> None:
    measured = measured_of([], [replace(CACHES, job_id="other", teacher_sha256="b" * 64, seconds=8.0), CACHES])
    own, similar = inference_rate(measured, TEACHER), inference_rate(measured, replace(TEACHER, sha256="c" * 64))
    assert own is not None
    assert (own.rows_per_s, own.beside_s) == (250.0, 6.0)
    assert similar is not None
    assert similar.rows_per_s == pytest.approx(187.5)
    assert similar.basis.startswith("1,000 rows of another teacher of about its size")
    unlike = inference_rate(measured, replace(TEACHER, sha256="c" * 64, size_bytes=2000))
    assert unlike is not None
    assert unlike.rows_per_s is None
    assert inference_rate(measured_of([]), TEACHER) is None


def test_inference_rate_of_nothing_to_infer_has_the_preparation_of_jobs_that_inferred_nothing() -> None:
    measured = measured_of([], [CACHES, replace(CACHES, rows=0, seconds=0.0, beside_s=2.0)])
    rate = inference_rate(measured, TEACHER, infers=False)
    assert rate is not None
    assert rate.beside_s == 2.0
