"""Delivers what is due in the outbox: a task in the event loop of each API process.

The API has it and not the engine, which in its container has no network. Nobody waits for it: each attempt is a task of
its own with a deadline, a host that does not answer has only so many of them, and the database and the resolver are
asked in threads of their own.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db.webhook_outbox import ATTEMPT_S, Claim, DeliveryStatus, WebhookOutbox
from service.settings import Settings
from service.webhooks.allowed import AllowedHosts, WebhookRefused
from service.webhooks.sender import WebhookSender
from service.webhooks.signature import headers_of, load_secrets

POLL_S = 1.0
RETRY_S = 10.0
Result = TypeVar("Result")
log = structlog.get_logger("retort.webhooks")


class WebhookDispatcher:
    """Delivers while it is entered; what it has begun by the end is due again once its claim has run out.

    Args:
        settings: where the secret is.
        hosts: where messages may go.
        outbox: what is due.
        poll_s: how often it is asked.
        retry_s: pause after a failure of the machine's own.
        open_sender: makes what sends them, when the first one is due.
    """

    def __init__(
        self,
        settings: Settings,
        hosts: AllowedHosts,
        outbox: WebhookOutbox,
        *,
        poll_s: float = POLL_S,
        retry_s: float = RETRY_S,
        open_sender: Callable[[AllowedHosts], WebhookSender] = WebhookSender,
    ) -> None:
        self._settings, self._hosts, self._outbox = settings, hosts, outbox
        self._poll_s, self._retry_s = poll_s, retry_s
        self._open_sender = open_sender
        self._sender: WebhookSender | None = None
        self._in_flight: dict[asyncio.Task[None], str] = {}
        self._is_free = asyncio.Event()

    async def __aenter__(self) -> Self:
        # Of its own: the common threads may all be busy with long requests.
        self._thread = anyio.CapacityLimiter(1)
        self._work = asyncio.create_task(self._deliver_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._work, *self._in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver_all(self) -> None:
        try:
            while True:
                try:
                    await self._begin_due()
                except Exception as error:
                    # The database is away, say, or the system's certificates: what was claimed is due again later.
                    log.warning("webhooks cannot be delivered now", error=f"{type(error).__name__}: {error}")
                    await asyncio.sleep(self._retry_s)
        finally:
            if self._sender is not None:
                await self._sender.__aexit__(None, None, None)

    async def _begin_due(self) -> None:
        """Begin what is due now; without any, wait until that may have changed."""
        in_flight = Counter(self._in_flight.values())
        claims = await self._in_thread(lambda: self._outbox.claim(in_flight))
        if not claims:
            self._is_free.clear()
            # Not ``wait_for``, which Python 3.11 lets swallow a cancellation that meets the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._is_free.wait()
            return
        if self._sender is None:
            # It reads the certificates of the system, which takes a moment, and most services need none.
            self._sender = await self._in_thread(lambda: self._open_sender(self._hosts))
        for claim in claims:
            task = asyncio.create_task(self._deliver(claim, self._sender))
            self._in_flight[task] = claim.host
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._is_free.set()

    async def _deliver(self, claim: Claim, sender: WebhookSender) -> None:
        status_code, error = await self._attempt(claim, sender)
        try:
            status = await self._in_thread(lambda: self._outbox.record(claim, status_code, error))
        except SQLAlchemyError as failure:
            log.warning("an attempt at a webhook cannot be recorded: it is made again", error=type(failure).__name__)
            return
        known = {"job_id": claim.job_id, "host": claim.host, "attempt": claim.attempt, "status_code": status_code}
        if status is DeliveryStatus.DELIVERED:
            log.info("webhook delivered", **known)
        elif status is DeliveryStatus.GIVEN_UP:
            log.error("webhook given up", error=error, **known)
        else:
            log.warning("webhook not delivered, it is tried again", error=error, **known)

    async def _attempt(self, claim: Claim, sender: WebhookSender) -> tuple[int | None, str | None]:
        """Status code of the answer, and what went wrong."""
        try:
            keys = await self._in_thread(lambda: load_secrets(self._settings))
            status_code = await sender.post(
                claim.url, claim.body, headers_of(claim.id, datetime.now(UTC), claim.body, keys)
            )
        except WebhookRefused as error:
            return None, str(error)
        except TimeoutError:
            return None, f"no answer within {ATTEMPT_S:g} s"
        except Exception as error:
            # Whatever it was: another try may do, and the others go on.
            return None, f"{type(error).__name__}: {error}".rstrip(": ").partition("\n")[0]
        answered = f"the receiver answered {status_code}"
        if 300 <= status_code < 400:
            answered += ": redirects are not followed, name the URL that it leads to"
        return status_code, None if 200 <= status_code < 300 else answered

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(call, limiter=self._thread)
