"""Errors of the client, and the proxies that the environment names.

::

    ClientError
    ├── ApiProblem            the service answered with a problem (RFC 9457)
    ├── ServiceUnreachable    (ConnectionError) nothing answers, or no longer
    ├── UnusableProxy         (ValueError) a proxy that the environment names, of a kind that cannot be used
    ├── DamagedDownload       (OSError) the bytes are not what the service had promised
    ├── WaitTimeout           (TimeoutError) the job is still going
    └── MissingPackage        (ImportError) a package that only some methods need is not installed
"""

import ipaddress
import json
import os
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

import httpx2


class ClientError(Exception):
    """Base of every error that the client raises on purpose."""


class ApiProblem(ClientError):
    """The service refused; ``str`` is one line with the problem, its place and the allowed values.

    Attributes:
        status: the HTTP status code.
        title: the kind of problem.
        detail: this occurrence of it; may be empty.
        errors: ``{"pointer": "#/training/epochs", "detail": ...}`` for each wrong field.
        request_id: by which the service's log has it; None when the answer had none.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        errors: tuple[Mapping[str, str], ...] = (),
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        fields = "; ".join(
            f"{error.get('pointer', '#').removeprefix('#/') or 'body'}: {error.get('detail', '')}"
            for error in self.errors
        )
        text = fields or self.detail
        return f"{self.title}: {text}" if text else f"{self.title} (HTTP {self.status})"

    @classmethod
    def from_response(cls, response: httpx2.Response) -> Self:
        """Parse problem+json; anything else (a proxy's page, say) becomes its status line."""
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        if not isinstance(body, dict) or "title" not in body:
            reason = response.reason_phrase or "no reason given"
            return cls(response.status_code, f"HTTP {response.status_code} {reason}")
        return cls(
            status=response.status_code,
            title=str(body["title"]),
            detail=str(body.get("detail") or ""),
            errors=tuple(body.get("errors") or ()),
            request_id=body.get("request_id"),
        )


class ServiceUnreachable(ClientError, ConnectionError):
    """No service answers at the address, or it stopped answering and did not come back."""

    def __init__(self, url: str, reason: object) -> None:
        self.url = url
        if isinstance(reason, httpx2.ReadTimeout):
            # It is there, and perhaps at work: nobody has to start it.
            super().__init__(
                f"the Retort service at {url} has not answered in time ({str(reason) or 'ReadTimeout'}), and may go on "
                "with what was sent: look there, or send it again; the same file gives the same teacher or cache"
            )
            return
        proxies = proxy_variables(url)
        named = f"; the environment names a proxy, {' and '.join(proxies)}" if proxies else ""
        super().__init__(
            f"no Retort service answers at {url} ({str(reason) or type(reason).__name__}{named}): start "
            "one with `retort serve`, or name another with --url or RETORT_URL"
        )


class UnusableProxy(ClientError, ValueError):
    """The environment names a proxy of a kind that cannot be used."""

    def __init__(self, url: str) -> None:
        names = proxy_variables(url)
        # Not its address, which may hold a password.
        super().__init__(
            f"a proxy that {' or '.join(names)} names cannot be used to reach {url}: http://HOST:PORT and "
            "https://HOST:PORT can, and socks5://HOST:PORT where the package socksio is installed; name such a one, or "
            f"leave it out: `env {' '.join(f'-u {name}' for name in names)} retort ...`"
        )


class DamagedDownload(ClientError, OSError):
    """The file that arrived is not the one the service had announced; it was not kept."""


class WaitTimeout(ClientError, TimeoutError):
    """The job had not ended in the time given; it goes on."""


class MissingPackage(ClientError, ImportError):
    """A package that only some methods need is not installed."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(f"{what} needs the package {package}, which is not installed here: pip install {package}")


def proxy_variables(url: str) -> list[str]:
    """Variables of the environment that name proxies; none for this machine's own addresses."""
    if is_loopback(urlsplit(url).hostname or ""):
        return []
    kinds = ("all_proxy", "http_proxy", "https_proxy")
    return sorted(name for name, value in os.environ.items() if name.lower() in kinds and value)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of this machine alone, which no proxy can reach.

    The same rule as the service's, of which this module imports nothing.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
