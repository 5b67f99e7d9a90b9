# Generated from asynchronous/reports.py by python -m tests.repository.documents: change it there.
"""Reports of the Python client: the results of one job, and one table over several."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

from service.client import documents
from service.client.choices import Choices, JobChoices, as_body, as_query
from service.client.connection import ServiceConnection
from service.client.data_frames import data_frame
from service.client.transport import Document, path_part

if TYPE_CHECKING:
    import pandas

# Reading the predictions that runs have kept is work, not waiting.
_LONG_S = 300.0


class Report(documents.Report):
    """Results of one job: ``rows``, one of each run, and ``groups``, one of each student and method over seeds."""

    def __init__(self, document: Document, routes: "Reports", choices: Choices) -> None:
        super().__init__(document)
        self._routes = routes
        self._choices = choices

    def to_pandas(self, group: Literal["runs", "seeds"] = "runs") -> "pandas.DataFrame":
        """Make a data frame with a line per run, or per student and method over ``seeds``.

        Raises:
            MissingPackage: pandas is not installed.
        """
        return data_frame(self["rows" if group == "runs" else "groups"])

    def to_markdown(self, group: Literal["runs", "seeds"] = "seeds") -> str:
        """Table of the results as they are by now, a line per run, or per student and method over ``seeds``."""
        return self._routes.report_text(self.job_id, "markdown", group=group, **self._choices)


class Reports:
    """Methods of the client about results."""

    _connection: ServiceConnection

    def report(self, job_id: str, **choices: Unpack[Choices]) -> Report:
        """Results of a job: ``rows``, one of each run, and ``groups``, one of each student and method over seeds.

        Args:
            choices: ``baseline``, ``confidence``, ``paired``, see ``Choices``.
        """
        query = as_query(choices)
        document = self._connection.json("GET", _path(job_id), params=query, timeout=_LONG_S)
        return Report(document, self, choices)

    def report_csv(self, job_id: str) -> str:
        """Results of a job as CSV, a line per run."""
        return (self._connection.done("GET", _path(job_id), headers={"Accept": "text/csv"})).text

    def report_text(self, job_id: str, format: str, *, group: str | None = None, **choices: Unpack[Choices]) -> str:
        """Results of a job as text.

        Args:
            format: ``csv``, ``markdown`` or ``latex``.
            group: ``runs`` for a line per run, the default of CSV, or ``seeds`` for one per student and method.
            choices: as ``report`` has them.
        """
        query = as_query({"format": format, "group": group, **choices})
        return (self._connection.done("GET", _path(job_id), params=query, timeout=_LONG_S)).text

    def compare(self, job_ids: Sequence[str], **choices: Unpack[JobChoices]) -> documents.Comparison:
        """One table over several jobs on the same dataset and splits: ``groups``, as ``report`` has them.

        Args:
            job_ids: which; 20 at most.
            choices: see ``JobChoices``.
        """
        body = {"jobs": [*job_ids], **as_body(choices)}
        return self._connection.typed("POST", "/v1/reports", documents.Comparison, json=body, timeout=_LONG_S)

    def compare_text(self, job_ids: Sequence[str], format: str, **choices: Unpack[JobChoices]) -> str:
        """The table of ``compare`` as ``csv``, ``markdown`` or ``latex``."""
        body = {"jobs": [*job_ids], "format": format, **as_body(choices)}
        return (self._connection.done("POST", "/v1/reports", json=body, timeout=_LONG_S)).text


def _path(job_id: str) -> str:
    return f"/v1/jobs/{path_part(job_id)}/report"
