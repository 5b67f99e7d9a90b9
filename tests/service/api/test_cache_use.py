"""Forward passes of a live teacher, counted for what runs have trained."""

import pytest

from service.api.cache_use import _user
from service.db.models import Json
from service.db.queries.cache_use import TrainedRun, UsingJob
from service.db.states import State
from tests.support.store_cases import make_spec

TWO_VIEWS: Json = {
    "preset": "custom",
    "name": "two",
    "terms": [{"policy": "fixed", "view": 1, "name": "a"}, {"policy": "fixed", "view": 2, "name": "b"}],
}


@pytest.mark.parametrize(
    ("split", "method", "forwards"),
    [
        ("train", {"preset": "kd"}, 3 * 90),
        ("train", TWO_VIEWS, 3 * 2 * 90),
        ("train", {"preset": "ce"}, 0),
        ("train", {"preset": "of another version"}, 0),
        ("test", TWO_VIEWS, 100),
    ],
)
def test_live_teacher_is_asked_once_a_view_and_epoch_and_once_a_run_where_it_is_measured(
    split: str, method: Json, forwards: int
) -> None:
    job = UsingJob("job_1", "", State.RUNNING, {}, {})
    runs = [TrainedRun(job.id, method, 3, "run_1"), TrainedRun(job.id, method, 0, "run_2")]
    assert _user(job, runs, make_spec(split=split, samples=100), trained=90, begun={"run_1"}).forwards == forwards


@pytest.mark.parametrize(
    ("split", "epoch", "begun", "forwards"),
    [
        ("train", 5, {"run_0", "run_1"}, (5 - 3) * 90),
        # It has not begun: epoch 0 is stored until it has told those of the first run.
        ("train", 0, {"run_0"}, 0),
        ("test", 5, {"run_0", "run_1"}, 0),
        ("test", 5, {"run_1"}, 100),
        ("test", 3, {"run_1"}, 0),
    ],
)
def test_live_teacher_is_asked_for_the_added_epochs_of_an_extension_alone(
    split: str, epoch: int, begun: set[str], forwards: int
) -> None:
    """And where it is measured only if the run that it extends does not count."""
    plan = {"extends": {"run": "run_0", "training": {"epochs": 3}}}
    job = UsingJob("job_1", "", State.RUNNING, {}, plan)
    runs = [TrainedRun(job.id, {"preset": "kd"}, epoch, "run_1")]
    assert _user(job, runs, make_spec(split=split, samples=100), trained=90, begun=begun).forwards == forwards
