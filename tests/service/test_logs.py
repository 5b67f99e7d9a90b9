"""What a process writes to its standard output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service_helpers import Api, make_settings, running_api

pytest_plugins = ["tests.support.service_fixtures"]

CODE = """
import logging, structlog, warnings
logging.getLogger("ray").addHandler(logging.StreamHandler())
logging.getLogger("ray").propagate = False
from service.logs import configure_logging
configure_logging("info")
configure_logging("info")
with structlog.contextvars.bound_contextvars(request_id="req_1"):
    structlog.get_logger("service.x").info("request", path="/v1/jobs", status=200)
    structlog.get_logger("service.x").debug("not this")
    logging.getLogger("uvicorn.error").warning("from %s", "a library")
    logging.getLogger("uvicorn.access").info("not this, which is said by the service")
    logging.getLogger("ray.x").warning("from Ray")
    warnings.warn("from Python")
    try:
        1 / 0
    except ZeroDivisionError:
        structlog.get_logger("service.x").exception("unforeseen error")
"""


def test_every_line_is_one_json_object_with_the_request_id() -> None:
    """Ours, those of libraries, and tracebacks; configuring twice does not double them."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    *events, warned, last = [line["event"] for line in lines]
    assert [*events, last] == ["request", "from a library", "from Ray", "unforeseen error"]
    assert "UserWarning: from Python" in warned
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "warning", "error"]
    assert {line["request_id"] for line in lines} == {"req_1"}
    assert (lines[0]["path"], lines[0]["status"], lines[0]["logger"]) == ("/v1/jobs", 200, "service.x")
    assert "ZeroDivisionError" in lines[-1]["exception"]
    assert done.stderr == ""


def test_what_machines_ask_all_the_time_is_logged_for_who_debugs_unless_it_fails(api: Api) -> None:
    for path in ("/healthz", "/metrics", "/readyz", "/v1/jobs"):
        api.client.get(path)
    api.client.post("/healthz")
    # The line of a request comes after its answer.
    api.stop()
    told = {(line["method"], line["path"], line["status"]): line["log_level"] for line in requests(api)}
    assert told == {
        ("GET", "/healthz", 200): "debug",
        ("GET", "/metrics", 200): "debug",
        # No engine leads.
        ("GET", "/readyz", 503): "info",
        ("GET", "/v1/jobs", 200): "info",
        ("POST", "/healthz", 405): "info",
    }


def test_no_line_has_a_secret(tmp_path: Path) -> None:
    """Neither of requests that come with one nor of those that come with a wrong one."""
    key, wrong = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
    (tmp_path / "key").write_text(key)
    with running_api(make_settings(tmp_path, api_key_file=tmp_path / "key")) as api:
        for given in (key, wrong):
            headers = {"Authorization": f"Bearer {given}"}
            api.client.get("/v1/jobs", headers=headers, params={"limit": "x"})
            api.client.post("/v1/jobs", headers=headers, json={})
            api.client.get("/metrics", headers=headers)
        api.stop()
        assert len(requests(api)) == 6
        assert not any(secret in str(line) for line in api.logs for secret in (key, wrong))


def requests(api: Api) -> list[dict[str, object]]:
    return [line for line in api.logs if line["event"] == "request"]


PRINTS = """
import sys, types, service
def prints(_):
    print("out \\x1b[2J \\udcfc")
    print("err \\x1b[2J", file=sys.stderr)
process = sys.modules["service.engine.process"] = types.ModuleType("service.engine.process")
process.run_engine = prints
server = sys.modules["service.api.server"] = types.ModuleType("service.api.server")
server.serve, server.share_one_heap = prints, lambda: None
from service.cli import main
main([sys.argv[1]])
"""


@pytest.mark.parametrize("command", ["api", "engine"])
def test_what_libraries_print_is_text_to_a_terminal(command: str) -> None:
    """Ray passes on what its workers print, which may quote a stranger's graph."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PRINTS, command], capture_output=True, text=True, cwd=root, check=True)
    assert (done.stdout, done.stderr) == ("out \\x1b[2J \\xfc\n", "err \\x1b[2J\n")
