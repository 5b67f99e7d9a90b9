"""Texts of the form of a new job."""

import pytest

from service.page.job_form import seeds_error, seeds_of
from service.page.job_students import students_of
from service.page.number_field import number_error
from service.page.views.new_job import request_like


@pytest.mark.parametrize("text", ["0, 1,2", "0;1; 2,", " 0,1,,2 "])
def test_seeds_are_separated_by_commas_or_semicolons(text: str) -> None:
    assert seeds_error(text) is None
    assert seeds_of(text) == [0, 1, 2]


@pytest.mark.parametrize("text", ["0-4", "-1", "0, x", "²", "1.5", "", None])
def test_seeds_that_cannot_be_read_are_an_error_and_not_dropped(text: str | None) -> None:
    assert repr(text or "") in str(seeds_error(text))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "0 has to be at least 1"),
        (11.0, "11 has to be at most 10"),
        (2.5, "2.5 is no whole number"),
        (float("inf"), "inf is no finite number"),
        (1.0, None),
        (10.0, None),
        (None, None),
    ],
)
def test_number_beyond_its_bounds_is_an_error_and_none_is_none(value: float | None, message: str | None) -> None:
    assert number_error(value, {"type": "integer", "minimum": 1, "maximum": 10}) == message


def test_students_keep_their_first_weights_when_another_is_added_or_removed() -> None:
    begun = {"name": "cnn_s", "init": {"run": "run_1"}}
    given = ["resnet8", begun]
    assert students_of(["cnn_s", "cnn_m"], given) == [begun, "cnn_m"]
    assert students_of(["resnet8"], given) == ["resnet8"]


def test_number_has_to_be_within_bounds_that_are_exclusive() -> None:
    schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert number_error(0.0, schema) == "0 has to be more than 0"
    assert number_error(1.0, schema) == "1 has to be less than 1"
    assert number_error(0.5, schema) is None


def test_request_like_an_extended_job_trains_all_epochs_from_the_start() -> None:
    """What a job extends is said by the service, and refused of a client."""
    teacher = {"id": "tch_1", "caches": None, "weight": 1.0}
    old = {"teacher": "tch_1", "teachers": [teacher], "name": "longer", "tags": []}
    plan = {"students": ["cnn_s"], "training": {"epochs": 40}, "recipe": {"name": "none"}}
    found = request_like({**old, "plan": {**plan, "extends": {"run": "run_1"}}})
    assert found == {**plan, "recipe": "none", "name": "longer", "teacher": "tch_1"}
    assert found == request_like({**old, "plan": plan})
