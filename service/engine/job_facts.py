"""Facts about a live job that its expected end is made of: teachers, caches, rows that are still to be inferred."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from service.db.job_teachers import members_of
from service.db.models import Json
from service.db.queries.eta_queries import LiveJob
from service.estimates.measured import (
    MeasuredTimes,
    cache_identity,
    member_identities,
)
from service.estimates.missing_rows import missing_rows
from service.estimates.rates import InferenceRate, WantedTeacher, inference_rate, rate_of_several
from service.estimates.workload import Workload, batch_numbers
from store import Catalog
from workers.config.job import Plan


class InferenceLeft(NamedTuple):
    """Rows that a job still has to infer, by all of its teachers.

    Attributes:
        rate: over these rows.
        later_s: as of ``JobNow``.
    """

    rate: InferenceRate | None
    rows: int
    later_s: float | None


class JobFacts:
    """Facts about a job that stay while it lives, or change only when something more was measured."""

    def __init__(self, plan: Plan, document: Json, teacher: Json) -> None:
        self.plan = plan
        self.identity = cache_identity(document, teacher)
        members = members_of(teacher)
        self.teachers = [
            WantedTeacher.of(member["sha256"], None, member["preprocessing"], document) for member in members
        ]
        # Of imported logits nothing is inferred, of splits without any neither.
        self.is_imported = [bool(member.get("caches")) for member in members]
        self._member_identities = member_identities(document, teacher)
        self.batches = batch_numbers(plan)
        # An evaluation, of whose plan there are no runs, is one.
        self.run_count = max(1, len(self.batches))
        self.workload: Workload | None = None
        # Whether more was measured since the workload was computed.
        self.is_stale = True
        # By teacher.
        self._missing = [0] * len(self.teachers)
        # Stage and caches by which the rows were counted; counting walks through the folders of the caches.
        self._counted_by: object = None
        # When the last cache of one of several teachers was complete.
        self.ready_at: datetime | None = None

    def count_missing(
        self, rows: int, known: Sequence[str], *, stage: str | None, measured: MeasuredTimes, catalog: Catalog
    ) -> None:
        """Count the rows that each teacher still has to infer, if another stage or other caches are known.

        Args:
            rows: of all caches of one teacher.
            known: keys of caches that the job has told of; none takes those of earlier jobs with the same.
        """
        keys = known or [*measured.keys.get(self.identity, ())]
        alone = [tuple(measured.keys.get(identity, ())) for identity in self._member_identities]
        if self._counted_by == (stage, keys, alone):
            return
        self._missing = missing_rows(
            rows, [teacher.sha256 for teacher in self.teachers], keys, alone=alone, catalog=catalog
        )
        self._counted_by = stage, keys, alone

    def inference_left(self, job: LiveJob, measured: MeasuredTimes, now: datetime, *, is_coming: bool) -> InferenceLeft:
        """Rows that are left, at each teacher's own rate.

        Args:
            is_coming: another job that is served before infers the same.
        """
        rows = [
            0 if is_coming or is_imported else count
            for count, is_imported in zip(self._missing, self.is_imported, strict=True)
        ]
        rates = [
            inference_rate(measured, teacher, infers=count > 0)
            for teacher, count in zip(self.teachers, rows, strict=True)
        ]
        if len(rates) == 1:
            return InferenceLeft(rates[0], rows[0], 0.0)
        return InferenceLeft(rate_of_several(rates, rows), sum(rows), self._later_s(job, rates, rows, now))

    def _later_s(
        self, job: LiveJob, rates: Sequence[InferenceRate | None], rows: Sequence[int], now: datetime
    ) -> float | None:
        """Seconds of those of several teachers that follow the one at work; None where that is not known."""
        missing = [
            None if rate is None or rate.rows_per_s is None else count / rate.rows_per_s
            for rate, count in zip(rates, rows, strict=True)
            if count
        ]
        inference = job.inference or {}
        if inference and inference["rows_done"] < inference["rows_total"]:
            missing = missing[1:]
        known = [each for each in missing if each is not None]
        if len(known) < len(missing):
            return None
        if known and self.ready_at is not None and inference.get("rows_done") == inference.get("rows_total"):
            # The next one is at work, and has told nothing yet.
            known[0] = max(0.0, known[0] - (now - self.ready_at).total_seconds())
        return sum(known)
