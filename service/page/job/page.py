"""State of a job's view: the job's document, the curves of its runs, and the parts of the view that follow them."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import ui

from service.page.job.curve_store import CurveStore
from service.page.job.health import HEALTH_METRICS, complaints, is_live
from service.page.job.url_state import UrlState
from service.page.viewer import Document, ViewerApi

# Between two looks at a job that is worked on, and at one that has ended.
LIVE_S = 1.0
ENDED_S = 15.0
Listener = Callable[[bool], Awaitable[None]]


class JobPage:
    """Job that is shown, with all that is read of it again and again.

    Args:
        job: its document.

    Attributes:
        complaints: what is wrong with runs, by their id.
        head: parts that are always there; each is called after a look, with whether curves or states have changed.
        listeners: those of the open tab; a tab takes the list before it waits for its first answer.
    """

    def __init__(self, api: ViewerApi, job: Document, url: UrlState) -> None:
        self.api = api
        self.job = job
        self.url = url
        self.store = CurveStore(api, job["id"])
        self.store.want(HEALTH_METRICS)
        self.complaints: dict[str, str] = {}
        self.head: list[Listener] = []
        self.listeners: list[Listener] = []
        self.timer: ui.timer | None = None
        self._refreshing = asyncio.Lock()

    @property
    def path(self) -> str:
        """Path of the job in the API."""
        return f"/v1/jobs/{self.job['id']}"

    @property
    def is_live(self) -> bool:
        """Whether the job has not ended."""
        return is_live(self.job["state"])

    async def read_curves(self) -> bool:
        """Read what is new of the curves, and what is wrong with runs. Returns whether anything is. Raises Problem."""
        is_changed = await self.store.update()
        if is_changed:
            self.complaints = await asyncio.to_thread(complaints, list(self.store.runs.values()))
        return is_changed

    def leave_tab(self) -> None:
        """Follow no more of the tab: what it adds later, once an answer is there, goes to its own old list."""
        self.listeners = []

    async def refresh(self) -> None:
        """Look at the job and the curves of its runs, and tell all parts. Raises Problem."""
        # One at a time: an action looks as well, and parts would add the same news twice.
        async with self._refreshing:
            before = self.job["progress"]["runs"]
            self.job, is_changed = await asyncio.gather(self.api.get(self.path), self.read_curves())
            is_changed |= before != self.job["progress"]["runs"]
            for listener in (*self.head, *self.listeners):
                await listener(is_changed)
        if self.timer is not None:
            self.timer.interval = LIVE_S if self.is_live else ENDED_S
