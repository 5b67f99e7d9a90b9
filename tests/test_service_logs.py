"""What a process writes to its standard output."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import logging, structlog
from service.logs import configure_logging
configure_logging("info")
configure_logging("info")
with structlog.contextvars.bound_contextvars(request_id="req_1"):
    structlog.get_logger("service.x").info("request", path="/v1/jobs", status=200)
    structlog.get_logger("service.x").debug("not this")
    logging.getLogger("uvicorn.error").warning("from %s", "a library")
    try:
        1 / 0
    except ZeroDivisionError:
        structlog.get_logger("service.x").exception("unforeseen error")
"""


def test_every_line_is_one_json_object_with_the_request_id() -> None:
    """Ours, those of libraries, and tracebacks; configuring twice does not double them."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["request", "from a library", "unforeseen error"]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert {line["request_id"] for line in lines} == {"req_1"}
    assert (lines[0]["path"], lines[0]["status"], lines[0]["logger"]) == ("/v1/jobs", 200, "service.x")
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert done.stderr == ""
