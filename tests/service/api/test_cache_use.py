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
    runs = [TrainedRun(job.id, method, 3), TrainedRun(job.id, method, 0)]
    assert _user(job, runs, make_spec(split=split, samples=100), trained=90).forwards == forwards
