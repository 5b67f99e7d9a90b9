"""Texts of the form of a new job."""

import pytest

from service.page.job_form import seeds_error, seeds_of


@pytest.mark.parametrize("text", ["0, 1,2", "0;1; 2,", " 0,1,,2 "])
def test_seeds_are_separated_by_commas_or_semicolons(text: str) -> None:
    assert seeds_error(text) is None
    assert seeds_of(text) == [0, 1, 2]


@pytest.mark.parametrize("text", ["0-4", "-1", "0, x", "²", "1.5", "", None])
def test_seeds_that_cannot_be_read_are_an_error_and_not_dropped(text: str | None) -> None:
    assert repr(text or "") in str(seeds_error(text))
