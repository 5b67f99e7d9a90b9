"""State of a job's view: the job's document, the curves of its runs, and the parts of the view that follow them."""

import asyncio

from service.page.job.curve_store import CurveStore
from service.page.job.followed import FollowedPage
from service.page.job.health import HEALTH_METRICS, complaints, is_live
from service.page.job.url_state import UrlState
from service.page.viewer import Document, ViewerApi


class JobPage(FollowedPage):
    """Job that is shown, with all that is read of it again and again.

    Args:
        job: its document.

    Attributes:
        complaints: what is wrong with runs, by their id.
    """

    def __init__(self, api: ViewerApi, job: Document, url: UrlState) -> None:
        super().__init__(api, url)
        self.job = job
        self.store = CurveStore(api, job["id"])
        self.store.want(HEALTH_METRICS)
        self.complaints: dict[str, str] = {}

    @property
    def path(self) -> str:
        """Path of the job in the API."""
        return f"/v1/jobs/{self.job['id']}"

    @property
    def is_live(self) -> bool:
        """Whether the job has not ended."""
        return is_live(self.job["state"])

    @property
    def is_first_due(self) -> bool:
        """Whether runs are trained, none of which has ended an epoch."""
        is_training = self.job["state"] == "running" and self.job["stage"] == "training"
        return is_training and not any(run.values for run in self.store.runs.values())

    async def read_curves(self) -> bool:
        """Read what is new of the curves, and what is wrong with runs. Returns whether anything is. Raises Problem."""
        is_changed = await self.store.update()
        if is_changed:
            self.complaints = await asyncio.to_thread(complaints, list(self.store.runs.values()))
        return is_changed

    async def look(self) -> bool:
        """Read the job and the curves of its runs; return whether curves or states have changed. Raises Problem."""
        before = self.job["progress"]["runs"]
        self.job, is_changed = await asyncio.gather(self.api.get(self.path), self.read_curves())
        return is_changed or before != self.job["progress"]["runs"]
