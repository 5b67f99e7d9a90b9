"""Client of the Retort service for Python: one method per route, nothing hidden.

Answers are the API's documents: dictionaries whose fields are attributes as well (``service.client.documents``). A
newer service does not break an older client by a field that it does not know. Lists are walked to their end. Reads,
requests of control (cancel, pause, resume, retry), submissions (by their Idempotency-Key), event streams (by their
numbers) and downloads (by Range) survive a broken connection; the errors are those of ``service.client.errors``. It
needs httpx2 alone (rich for a progress bar, pandas for a data frame) and imports nothing else of Retort.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx2

from service.client import documents
from service.client.asynchronous.connection import ServiceConnection
from service.client.asynchronous.job_routes import JobRoutes
from service.client.asynchronous.picture_routes import PictureRoutes
from service.client.asynchronous.resource_routes import ResourceRoutes
from service.client.errors import (
    ApiProblem,
    ClientError,
    DamagedDownload,
    ServiceUnreachable,
    UnusableProxy,
    WaitTimeout,
)
from service.client.transport import DEFAULT_URL, LONG_S, Document

__all__ = [
    "DEFAULT_URL",
    "ApiProblem",
    "AsyncClient",
    "ClientError",
    "DamagedDownload",
    "Document",
    "ServiceUnreachable",
    "UnusableProxy",
    "WaitTimeout",
]


class AsyncClient(JobRoutes, ResourceRoutes, PictureRoutes):
    """Client of one service; a context manager that closes its connections.

    Args:
        base_url: its address.
        api_key: sent as a bearer token; None for a service without keys.
        timeout_s: for one short request; uploads, verification and streams have their own.
        transport: of httpx2, in place of sockets.

    Raises:
        ValueError: ``base_url`` is not an http(s) address.
        UnusableProxy: the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = ServiceConnection(base_url, api_key, timeout_s, transport)
        self.base_url = self._connection.base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def ready(self) -> Document:
        """Readiness: the answer of /readyz, with ``ready`` true or false; not ready is no error here."""
        response = await self._connection.send("GET", "/readyz")
        if response.status_code not in (200, 503):
            raise ApiProblem.from_response(response)
        body: Document = response.json()
        return {**body, "ready": response.status_code == 200}

    async def methods(self) -> list[documents.Method]:
        """List the methods that a job can name, with formula, defaults and JSON Schema."""
        return await self._connection.all("/v1/methods", documents.Method)

    async def preview_method(
        self,
        method: str | Mapping[str, object],
        cache: str,
        *,
        student_cache: str | None = None,
        epoch: int | None = None,
        epochs: int | None = None,
        bins: int | None = None,
    ) -> documents.MethodPreview:
        """Preview a method: the temperatures that it gives on a cache, from its statistics; nothing is trained.

        Args:
            method: as in a job: a name, or an object with ``preset``.
            cache: the key of a complete cache.
            student_cache: the key of another network's, which stands for the student's; None takes the teacher's.
            epoch: in which epoch, counted from 1; None for this and the next two takes the service's default.
            epochs: of how many.
            bins: of each histogram.
        """
        options = {"student_cache": student_cache, "epoch": epoch, "epochs": epochs, "bins": bins}
        given = {name: value for name, value in options.items() if value is not None}
        body = {"method": method, "cache": cache, **given}
        return await self._connection.typed(
            "POST", "/v1/methods/preview", documents.MethodPreview, json=body, timeout=LONG_S
        )

    async def students(self) -> list[documents.Student]:
        """List the students that a job can name."""
        return await self._connection.all("/v1/students", documents.Student)

    async def recipes(self) -> list[documents.RecipeEntry]:
        """List the recipes that a job can name, with the values that they fill in."""
        return await self._connection.all("/v1/recipes", documents.RecipeEntry)

    async def gc(self, *, dry_run: bool = False, **limits: float | None) -> documents.GcReport:
        """Delete ended jobs, decoded datasets and events beyond limits; the report lists them.

        Args:
            dry_run: change nothing.
            limits: ``jobs_max_age_s``, ``jobs_max_count``, ``jobs_max_bytes``, ``decoded_max_bytes``,
                ``events_max_age_s``; the service's own where one is None or left out.
        """
        body = {"dry_run": dry_run, **limits}
        return await self._connection.typed(
            "POST", "/v1/gc", documents.GcReport, json=body, timeout=LONG_S, repeat=False
        )
