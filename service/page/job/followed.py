"""State that the views of a job and of a run share: the parts that follow a document, looked at again and again."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from nicegui import ui

from service.page.job.url_state import UrlState
from service.page.viewer import ViewerApi

# Between two looks at what is worked on, at what is to end its first epoch, and at what has ended.
LIVE_S = 1.0
FIRST_S = 0.4
ENDED_S = 15.0
Listener = Callable[[bool], Awaitable[None]]


class FollowedPage(ABC):
    """Document that is shown, and the parts of its view.

    Attributes:
        head: parts that are always there; each is called after a look, with whether anything has changed.
        listeners: those of the open tab; a tab takes the list before it waits for its first answer.
    """

    def __init__(self, api: ViewerApi, url: UrlState) -> None:
        self.api = api
        self.url = url
        self.head: list[Listener] = []
        self.listeners: list[Listener] = []
        self.timer: ui.timer | None = None
        self._refreshing = asyncio.Lock()

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether it has not ended."""

    @property
    @abstractmethod
    def is_first_due(self) -> bool:
        """Whether the first epoch is being trained: its point, the first of all curves, is to be drawn at once."""

    @abstractmethod
    async def look(self) -> bool:
        """Read the document anew; return whether anything has changed. Raises Problem."""

    def leave_tab(self) -> None:
        """Follow no more of the tab: what it adds later, once an answer is there, goes to its own old list."""
        self.listeners = []

    async def refresh(self) -> None:
        """Look, and tell all parts. Raises Problem."""
        # One at a time: an action looks as well, and parts would add the same news twice.
        async with self._refreshing:
            is_changed = await self.look()
            # The curves before the head, which asks for more.
            for listener in (*self.listeners, *self.head):
                await listener(is_changed)
        if self.timer is not None:
            self.timer.interval = ENDED_S if not self.is_live else FIRST_S if self.is_first_due else LIVE_S
