"""Options of how results are compared, for the reports of the client."""

from collections.abc import Mapping
from typing import Literal, TypedDict


class Choices(TypedDict, total=False):
    """Options of how results are compared.

    Attributes:
        baseline: the method to which differences are given; ``ce`` by default.
        confidence: of the intervals, 0.95 by default.
        paired: ``"samples"`` adds McNemar's exact test of each seed, from the predictions that runs have kept.
    """

    baseline: str | None
    confidence: float
    paired: Literal["seeds", "samples"]


class JobChoices(Choices, total=False):
    """Options of how the results of several jobs are compared.

    Attributes:
        baseline_job: the job to compare with, in place of each one's own; without ``baseline`` each method with itself
            there.
        accept_different_data: compare jobs on different datasets or splits all the same.
    """

    baseline_job: str | None
    accept_different_data: bool


def as_body(choices: Mapping[str, object]) -> dict[str, object]:
    """Choices that were made, as fields of a body."""
    return {name: value for name, value in choices.items() if value is not None}


def as_query(choices: Mapping[str, object]) -> dict[str, str]:
    """Choices that were made, as parameters of a query."""
    return {name: str(value) for name, value in as_body(choices).items()}
