"""Sessions of the page: who is let in, by which key, from which origin; and what stays the API's."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.cli.processes.supervisor import command, free_port
from service.page.paths import SESSION_COOKIE
from tests.service.api.test_multipart import wait_until

KEY = "0123456789abcdef0123456789abcdef"
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@dataclass
class PageService:
    """API with a key and the page, in a process of its own."""

    url: str
    log: Path

    @contextmanager
    def client(self, *, logged_in: bool = False) -> Iterator[httpx2.Client]:
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            if logged_in:
                assert client.post("/login", data={"key": KEY}).status_code == 303
            yield client


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageService]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "key").write_text(KEY)
    port = free_port()
    environment = {
        **os.environ,
        "RETORT_API_KEY_FILE": str(folder / "key"),
        "RETORT_DATA_DIR": str(folder / "data"),
        "RETORT_DATA_ROOT": str(folder),
        "RETORT_PORT": str(port),
    }
    running = PageService(f"http://127.0.0.1:{port}", folder / "api.log")
    with (
        running.log.open("wb") as log,
        subprocess.Popen(command("api"), env=environment, stdout=log, stderr=subprocess.STDOUT) as api,
    ):
        try:
            wait_until(lambda: answers(running.url), 60)
            yield running
        finally:
            api.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def test_page_leads_to_the_log_in_and_back_without_a_key(page: PageService) -> None:
    with page.client() as client:
        answer = client.get("/jobs?state=failed")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=%2Fjobs%3Fstate%3Dfailed"
        form = client.get(answer.headers["location"])
        assert '<input type="hidden" name="next" value="/jobs?state=failed">' in form.text
        answer = client.post("/login", data={"key": KEY, "next": "/jobs?state=failed"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/jobs?state=failed")
        cookie = answer.headers["set-cookie"].lower()
        assert SESSION_COOKIE in cookie
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/jobs").status_code == 200


def test_page_keeps_no_key_that_the_api_refuses(page: PageService) -> None:
    with page.client() as client:
        answer = client.post("/login", data={"key": "f" * 32})
        assert answer.status_code == 401
        assert "not one of this service" in answer.text
        assert client.get("/jobs").status_code == 303
        assert client.get("/viewer/v1/jobs").status_code == 401


def test_log_out_forgets_the_key(page: PageService) -> None:
    with page.client(logged_in=True) as client:
        assert client.get("/viewer/v1/jobs").status_code == 200
        client.get("/logout")
        assert client.get("/viewer/v1/jobs").status_code == 401


@pytest.mark.parametrize("given", ["//elsewhere.example/", "https://elsewhere.example/x", "/\\elsewhere.example"])
def test_log_in_leads_to_no_other_host(page: PageService, given: str) -> None:
    with page.client() as client:
        location = client.post("/login", data={"key": KEY, "next": given}).headers["location"]
    assert location.startswith("/")
    assert not urlsplit(location).netloc
    assert not location.startswith(("//", "/\\"))


def test_session_reads_the_api_and_uploads_files_but_changes_nothing_else(page: PageService) -> None:
    """A form of another site that a browser would send along with its cookie must not post jobs."""
    with page.client(logged_in=True) as client:
        assert client.get("/viewer/v1/teachers").json()["data"] == []
        for kind in ("teachers", "caches", "student-files"):
            # It reaches the route, which wants the file.
            assert client.post(f"/viewer/v1/{kind}", files={"x": b""}).status_code in (400, 422)
        for path in ("/viewer/v1/jobs", "/viewer/v1/gc", "/viewer/v1/caches/x/pin"):
            assert client.post(path, json={}).status_code in (404, 405)
        assert client.delete("/viewer/v1/jobs/job_x").status_code in (404, 405)
        # The cookie is no key for the API's own paths.
        assert client.get("/v1/jobs").status_code == 401


def test_page_refuses_requests_of_other_origins(page: PageService) -> None:
    with page.client(logged_in=True) as client:
        answer = client.post("/login", data={"key": KEY}, headers={"Origin": "https://elsewhere.example"})
        assert answer.status_code == 403
        assert answer.json()["type"].endswith("foreign-origin")
        assert client.get("/viewer/v1/jobs", headers={"Origin": page.url}).status_code == 200


def refusal(address: str, origin: str, cookie: str) -> int:
    """Status with which a socket is refused."""
    parts = urlsplit(address)
    with socket.create_connection((str(parts.hostname), parts.port or 80)) as raw:
        try:
            connect(address, sock=raw, origin=origin, additional_headers={"Cookie": cookie})
        except InvalidStatus as refused:
            return refused.response.status_code
    pytest.fail("the socket was opened")


def test_socket_wants_a_session_and_its_own_origin(page: PageService) -> None:
    address = page.url.replace("http", "ws") + SOCKET
    with page.client(logged_in=True) as client:
        [name] = [name for name in client.cookies if name.startswith(SESSION_COOKIE)]
        session = f"{name}={client.cookies[name]}"
    assert refusal(address, page.url, "") == 403
    assert refusal(address, "https://elsewhere.example", session) == 403
    with connect(address, origin=page.url, additional_headers={"Cookie": session}) as opened:
        assert str(opened.recv(timeout=20)).startswith("0{")


def test_page_leaves_unknown_paths_and_methods_to_the_api(page: PageService) -> None:
    with page.client(logged_in=True) as client:
        for path in ("/v1/nothing", "/nothing", "/docs/nothing"):
            answer = client.get(path, headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json", path
        answer = client.delete("/v1/teachers", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]


def test_page_answers_a_browser_that_is_lost_with_its_navigation(page: PageService) -> None:
    """A program, which asks for no HTML, has the API's problem."""
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    with page.client(logged_in=True) as client:
        for path in ("/nothing", "/docs/nothing", "/jobs/job_x/nothing", "/<b>nothing"):
            answer = client.get(path, headers=browser)
            assert answer.status_code == 404
            assert answer.headers["content-type"].startswith("text/html"), path
            assert '<a href="/datasets">Datasets</a>' in answer.text
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "<b>" not in answer.text
        assert client.get("/v1/nothing", headers=browser).headers["content-type"] == "application/problem+json"
        assert client.get("/docs/", headers=browser).headers["location"].endswith("/docs")
    with page.client() as client:
        assert client.get("/nothing", headers=browser).status_code == 404
        assert client.get("/jobs/job_x/nothing", headers=browser).status_code == 303


def test_page_loads_and_sends_to_no_other_host(page: PageService) -> None:
    with page.client(logged_in=True) as client:
        answer = client.get("/jobs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "://" not in policy
    assert "frame-ancestors 'none'" in policy


def test_page_requests_are_those_of_the_session_key_in_the_audit_log(page: PageService) -> None:
    with page.client(logged_in=True) as client:
        client.post("/viewer/v1/teachers", files={"x": b""})
    lines = [line for line in page.log.read_text().splitlines() if '"audit"' in line and "/v1/teachers" in line]
    assert lines
    assert '"key_name": null' not in lines[-1]
    assert KEY not in page.log.read_text()


@pytest.mark.parametrize("path", ["/jobs/job_x", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/gallery"])
def test_nicegui_is_not_reached_without_a_key(page: PageService, path: str) -> None:
    """It keeps something for each view and each socket, long polling among them."""
    with page.client() as client:
        assert client.get(path).headers["location"].startswith("/login?")
    with page.client(logged_in=True) as client:
        assert client.get("/_nicegui_ws/socket.io/?EIO=4&transport=polling").status_code == 400


def test_theme_has_a_cookie_of_its_own(page: PageService) -> None:
    """A link of another site comes without the session, which it must not replace by an empty one."""
    with page.client() as client:
        answer = client.get("/theme?theme=dark&next=/jobs")
    assert "retort_theme=dark" in answer.headers["set-cookie"]
    assert SESSION_COOKIE not in answer.headers["set-cookie"]


@pytest.mark.parametrize("target", ["foo", "*", "//v1/jobs"])
def test_requests_for_no_path_are_no_requests_of_the_page(page: PageService, target: str) -> None:
    parts = urlsplit(page.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80)) as raw:
        raw.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert b"500" not in answer.split(b"\r\n", 1)[0]
    assert b"problem+json" in answer


def test_secret_of_the_sessions_is_for_this_user_alone(page: PageService) -> None:
    secret = page.log.parent / "data" / "page_secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    assert "others could read the data directory" not in page.log.read_text()


@pytest.mark.parametrize(
    "path", ["/jobs/job_none", "/jobs/%00", "/gallery?run=..%2fjobs", "/new?job=..%2fruns", "/caches/x%3fy=1"]
)
def test_views_of_what_is_not_there_are_not_found(page: PageService, path: str) -> None:
    """Nor does an id of the address lead into another path of the API."""
    with page.client(logged_in=True) as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert "Internal error" not in answer.text
