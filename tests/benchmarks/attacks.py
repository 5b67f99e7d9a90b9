"""Uploads every attack of ``tests.support.attacks`` to a live service and prints, as a table, what stopped it.

    python -m tests.benchmarks.attacks

After each one the service must answer, and take a good teacher; at the end nothing may be left but that one. The
service's own memory is read before and after.
"""

import argparse
import itertools
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import httpx2

from service.cli.render import console, table
from tests.benchmarks.memory import own_bytes
from tests.support.attacks import ATTACKS, BODIES
from tests.support.service_helpers import Api, make_settings, onnx_bytes, running_api

BOUNDARY = {"Content-Type": "multipart/form-data; boundary=B"}
TIMER_S = 4.0
FILE_MAX_BYTES = 24 << 20


def upload(api: Api, content: bytes) -> httpx2.Response:
    """Uploads a file with the preprocessing that the attacks' graphs ask for."""
    return api.client.post("/v1/teachers", files={"file": ("teacher.onnx", content)}, timeout=60)


def plant_links(api: Api) -> None:
    """A hard link and a symbolic one to a file outside, where an attacker would want them."""
    secret = api.settings.data_dir / "secret"
    secret.write_bytes(bytes(192 * 4 * 4))
    os.link(secret, api.settings.teachers_dir / "hardlink")
    (api.settings.teachers_dir / "symlink").symlink_to(secret)


def survived(api: Api, round_: int) -> bool:
    """Whether the service answers and takes a good teacher, a new one every time."""
    good = api.upload(onnx_bytes(salt=float(round_)))
    deleted = api.client.delete(good.headers.get("location", "/v1/teachers/none"))
    return (api.client.get("/healthz").status_code, good.status_code, deleted.status_code) == (200, 201, 204)


def stopped_by(response: httpx2.Response, *, runs: bool = False) -> str:
    """What stopped it, in a word: the reading of the body, the parser of the file, the check, or the smoke run."""
    answer = response.json()
    if not answer.get("type", "").endswith("invalid-teacher"):
        return "the reader"
    return "the smoke run" if runs else "the parser" if "not an ONNX file" in answer["detail"] else "the check"


def main() -> int:
    """Prints the table; 1 if an attack was not answered as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression: the attacks to run")
    parser.add_argument("--markdown", type=Path, help="where to write the table as Markdown")
    given = parser.parse_args()
    rows: list[list[str]] = []
    failed = 0
    rounds = itertools.count(1)

    def note(name: str, stopped: str, response: httpx2.Response, *, good: bool, seconds: float) -> None:
        nonlocal failed
        answer = response.json()
        slug = answer.get("type", "").rpartition(":")[2]
        alive = survived(api, next(rounds))
        failed += not (good and alive)
        row = [name, stopped, f"{response.status_code} {slug}", answer.get("detail", "accepted")[:110]]
        rows.append([*row, f"{seconds:.1f} s", "yes" if alive else "NO"])
        if not good:
            console().print(f"unexpected: {name}: {response.text[:400]}", markup=False)

    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(Path(folder), inspect_timeout_s=TIMER_S, teacher_max_bytes=FILE_MAX_BYTES)
        with running_api(settings) as api:
            plant_links(api)
            assert survived(api, 0)
            before_bytes = own_bytes("VmRSS", "status")
            for name, attack in ATTACKS.items():
                if re.search(given.only, name):
                    content = attack.build()
                    started_s = time.monotonic()
                    response = upload(api, content)
                    detail = response.json().get("detail", "")
                    good = response.status_code == 422 and bool(re.search(attack.says, detail))
                    stopped = stopped_by(response, runs=attack.runs)
                    note(name, stopped, response, good=good, seconds=time.monotonic() - started_s)
            for name, body in BODIES.items():
                if re.search(given.only, name):
                    started_s = time.monotonic()
                    response = api.client.post("/v1/teachers", content=body.chunks(), headers=BOUNDARY, timeout=60)
                    good = (response.status_code, response.json()["type"].rpartition(":")[2]) == (
                        body.status,
                        body.slug,
                    )
                    note(name, stopped_by(response), response, good=good, seconds=time.monotonic() - started_s)
            grown_mib = (own_bytes("VmRSS", "status") - before_bytes) / (1 << 20)
            left = sorted(path.name for path in settings.teachers_dir.iterdir())
    heads = ["attack", "stopped by", "answer", "detail", "took", "serves on"]
    console().print(table(heads, rows))
    failed += left != ["hardlink", "symlink"]
    summary = f"{len(rows)} attacks, {failed} not answered as they should be; left in the folder: {left}"
    console().print(f"{summary}; the process has grown by {grown_mib:.0f} MiB", markup=False)
    if given.markdown is not None:
        shown = [[*row[:3], *row[4:]] for row in (heads, ["---"] * len(heads), *rows)]  # all but the detail
        given.markdown.write_text("".join(f"| {' | '.join(row)} |\n" for row in shown))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
