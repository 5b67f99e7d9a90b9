"""Viewer of the page: asks the API in this process, with the key of the viewer's session and nothing beside it.

Every request passes through the whole application, so scopes, limits, audit lines and problems are those of any other
client. Views open one by ``viewer()`` and keep it while they are shown.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from nicegui import app as page_app
from nicegui import ui
from starlette.requests import Request

from service.page.paths import SESSION_KEY

Document = dict[str, Any]
Params = Mapping[str, str | int | float | bool | Sequence[str] | None]
# Attribute of the page application's state: the application whose API is asked.
API_STATE = "api"
NOT_FOUND = 404
# Items of a list that a choice shows; of more, it says that there are.
LIST_MAX = 1000
_PAGE = 100
# Of ids of all kinds, keys and fingerprints. Nothing else of an address gets into a path: the application sees it
# decoded, where even a quoted slash would lead to another route.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class ApiProblem(Exception):
    """Problem document with which the API has answered.

    Args:
        status: HTTP status.
        document: the problem (RFC 9457), with ``title`` and ``detail``.
    """

    def __init__(self, status: int, document: Document) -> None:
        self.status = status
        self.document = document
        super().__init__(str(document.get("detail") or document.get("title") or f"HTTP {status}"))

    @property
    def fields(self) -> list[Document]:
        """Fields of the request that are wrong, each with ``pointer`` and ``detail``; often none."""
        return list(self.document.get("errors") or [])


class ViewerApi:
    """API of the service as a viewer of the page may use it.

    Args:
        request: of the page that is shown: its session has the key, its client the address for limits and logs.
    """

    def __init__(self, request: Request) -> None:
        key = request.session.get(SESSION_KEY)
        transport = httpx2.ASGITransport(
            getattr(page_app.state, API_STATE),
            raise_app_exceptions=False,
            client=(request.client.host, request.client.port) if request.client else ("127.0.0.1", 0),
        )
        self._http = httpx2.AsyncClient(
            transport=transport,
            base_url="http://127.0.0.1",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # The application runs in this process, and its transport knows no time limit.
            timeout=None,
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request with these query parameters, but for None and empty ones, and this JSON.

        Raises:
            ApiProblem: the API has refused it.
        """
        given = {name: value for name, value in (params or {}).items() if value not in (None, "")}
        # Parameters that are empty, rather than absent, would replace the query of a path.
        sent = self._http.request(method, path, params=given or None, json=body, headers=headers)
        try:
            # In a task, and so in a context of its own: the application binds the ids of a request to its log lines.
            response = await asyncio.create_task(sent)
        except httpx2.InvalidURL as error:
            raise ApiProblem(
                NOT_FOUND, {"title": "Not found", "detail": f"{path[:80]!r} is no path: {error}"}
            ) from error
        if response.is_error:
            try:
                document = response.json()
            except ValueError:
                document = {"title": response.reason_phrase}
            raise ApiProblem(response.status_code, document)
        return response

    async def get(self, path: str, params: Params | None = None) -> Document:
        """Document at a path. Raises ApiProblem."""
        return await self._document("GET", path, params)

    async def list(self, path: str, params: Params | None = None) -> tuple[list[Document], bool]:
        """All items of a list, page by page, up to ``LIST_MAX``, and whether there are more. Raises ApiProblem."""
        found: list[Document] = []
        after, has_more = "", True
        while has_more and len(found) < LIST_MAX:
            page = await self.get(path, {**(params or {}), "limit": _PAGE, "after": after})
            found += page["data"]
            after, has_more = page["last_id"], page["has_more"]
        return found, has_more

    async def post(self, path: str, body: object = None, params: Params | None = None) -> Document:
        """Answer to a POST, empty where it has none. Raises ApiProblem."""
        return await self._document("POST", path, params, body)

    async def patch(self, path: str, body: object) -> Document:
        """Answer to a PATCH. Raises ApiProblem."""
        return await self._document("PATCH", path, None, body)

    async def put(self, path: str, body: object = None) -> Document:
        """Answer to a PUT, empty where it has none. Raises ApiProblem."""
        return await self._document("PUT", path, None, body)

    async def delete(self, path: str, params: Params | None = None) -> Document:
        """Answer to a DELETE, empty where it has none. Raises ApiProblem."""
        return await self._document("DELETE", path, params)

    async def _document(self, method: str, path: str, params: Params | None, body: object = None) -> Document:
        response = await self.request(method, path, params=params, body=body)
        document: Document = response.json() if response.content else {}
        return document


def resource(kind: str, id: str) -> str:
    """Path in the API of what has an id, which the viewer's address may have given.

    Args:
        kind: as in paths, such as ``jobs``.

    Raises:
        ApiProblem: it is no id.
    """
    if _ID.fullmatch(id) is None:
        raise ApiProblem(NOT_FOUND, {"title": "Not found", "detail": f"{id[:80]!r} is no id: open one from /{kind}"})
    return f"/v1/{kind}/{id}"


def viewer() -> ViewerApi:
    """API for the viewer of the page that is being built or used."""
    return ViewerApi(ui.context.client.request)
