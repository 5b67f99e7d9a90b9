"""Reports of the Python client: the results of one job, and one table over several."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, Unpack
from urllib.parse import quote

from service.client.transport import Document, ServiceConnection

# Reading the predictions that runs have kept is work, not waiting.
_LONG_S = 300.0


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


class Reports:
    """Methods of ``Client`` about results."""

    _connection: ServiceConnection

    def report(self, job_id: str, **choices: Unpack[Choices]) -> Document:
        """Results of a job: ``rows``, one of each run, and ``groups``, one of each student and method over seeds.

        Args:
            choices: ``baseline``, ``confidence``, ``paired``, see ``Choices``.
        """
        return self._connection.json("GET", _path(job_id), params=_query(choices), timeout=_LONG_S)

    def report_csv(self, job_id: str) -> str:
        """Results of a job as CSV, a line per run."""
        return self._connection.done("GET", _path(job_id), headers={"Accept": "text/csv"}).text

    def report_text(self, job_id: str, format: str, *, group: str | None = None, **choices: Unpack[Choices]) -> str:
        """Results of a job as text.

        Args:
            format: ``csv``, ``markdown`` or ``latex``.
            group: ``runs`` for a line per run, the default of CSV, or ``seeds`` for one per student and method.
            choices: as ``report`` has them.
        """
        query = _query({"format": format, "group": group, **choices})
        return self._connection.done("GET", _path(job_id), params=query, timeout=_LONG_S).text

    def compare(self, job_ids: Sequence[str], **choices: Unpack[JobChoices]) -> Document:
        """One table over several jobs on the same dataset and splits: ``groups``, as ``report`` has them.

        Args:
            job_ids: which; 20 at most.
            choices: see ``JobChoices``.
        """
        body = {"jobs": [*job_ids], **_given(choices)}
        return self._connection.json("POST", "/v1/reports", json=body, timeout=_LONG_S)

    def compare_text(self, job_ids: Sequence[str], format: str, **choices: Unpack[JobChoices]) -> str:
        """The table of ``compare`` as ``csv``, ``markdown`` or ``latex``."""
        body = {"jobs": [*job_ids], "format": format, **_given(choices)}
        return self._connection.done("POST", "/v1/reports", json=body, timeout=_LONG_S).text


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}/report"


def _given(choices: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in choices.items() if value is not None}


def _query(choices: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in _given(choices).items()}
