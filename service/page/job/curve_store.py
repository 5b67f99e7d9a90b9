"""Curves of a job's runs, kept up to date by documents of ``/v1/jobs/{id}/curves``. Epochs count from 1."""

import asyncio
from collections.abc import Sequence

from service.page.job.measures import RunCurve
from service.page.viewer import Document, ViewerApi


class CurveStore:
    """Metrics of all runs of a job, over epochs.

    Attributes:
        runs: by id, in the job's order.
        is_read: whether there was an answer yet.
    """

    def __init__(self, api: ViewerApi, job_id: str) -> None:
        self._api = api
        self._job_id = job_id
        self._metrics: tuple[str, ...] = ()
        self._after = 0
        self.runs: dict[str, RunCurve] = {}
        self.is_read = False

    def want(self, metrics: Sequence[str]) -> None:
        """Choose the metrics to read; new ones are read from the first epoch on."""
        wanted = tuple(sorted(set(metrics)))
        if not set(wanted) <= set(self._metrics):
            self._metrics = wanted
            self._after = 0
            self.is_read = False

    async def update(self) -> bool:
        """Read what is new. Returns whether anything has changed. Raises Problem."""
        asked = self._metrics
        path = f"/v1/jobs/{self._job_id}/curves"
        document = await self._api.get(path, {"after": self._after, "metric": asked})
        if asked != self._metrics:
            # Others are wanted by now, from the first epoch on.
            return False
        # Of a thousand runs there are a hundred thousand numbers.
        return await asyncio.to_thread(self.merge, document)

    def merge(self, document: Document) -> bool:
        """Take up a document; an epoch that comes again replaces the earlier one. Returns whether anything is new."""
        is_new = not self.is_read
        self.is_read = True
        self._after = document["last_id"] or self._after
        for each in document["runs"]:
            known = self.runs.get(each["run_id"])
            if known is None:
                named = {name: each[name] for name in ("name", "student", "method", "seed", "state", "epochs")}
                known = self.runs[each["run_id"]] = RunCurve(id=each["run_id"], **named)
                is_new = True
            is_new |= known.state != each["state"] or bool(each["epoch"])
            known.state = each["state"]
            for metric, values in each["metrics"].items():
                of_run = known.values.setdefault(metric, {})
                of_run |= {int(at): value for at, value in zip(each["epoch"], values, strict=True) if value is not None}
        return is_new
