"""A data directory that was copied to another path: a service started there goes on, beside the one it was copied from.

Copied as ``cp -a`` does, while the first service is at work.
"""

import shutil
from pathlib import Path

import pytest

from tests.support.digits import Digits
from tests.support.processes import Processes, events_until, job_of, running_service, weights_of

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = pytest.mark.timeout(600)


def files_that_name(folder: Path, text: str) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log" and text.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_copied_data_directory_has_a_service_that_goes_on_beside_the_first_one(
    service: Processes, teacher_id: str, digits: Digits, tmp_path: Path
) -> None:
    client = service.client
    done = client.wait(client.submit(job_of(teacher_id, "kd"))["id"])
    assert done["state"] == "succeeded", done["error"]
    # On its way while the copy is made, and long enough to end after the other service has begun.
    job = client.submit(job_of(teacher_id, "kd", epochs=40))
    [run] = client.runs(job["id"])
    events_until(client, job["id"], "epoch")
    there = tmp_path / "elsewhere" / "data"
    there.parent.mkdir()
    shutil.copytree(service.data_dir, there, ignore=shutil.ignore_patterns("*.log"))
    assert client.run(run["id"])["state"] == "running"
    # That one is for this very case.
    assert files_that_name(there, str(service.data_dir)) == ["place.json"]
    with running_service(there) as copy:
        again = copy.client.wait(job["id"])
        assert again["state"] == "succeeded", (again["error"], copy.logs())
        # From the checkpoint that was copied; the first one goes on without a loss.
        assert copy.client.run(run["id"])["attempt"] == 2
        assert copy.client.job(done["id"])["teacher_forwards"] == done["teacher_forwards"]
        assert client.wait(job["id"])["state"] == "succeeded"
        assert client.run(run["id"])["attempt"] == 1
        mine, theirs = weights_of(service, client, job["id"]), weights_of(copy, copy.client, job["id"])
        assert all((mine[name] == theirs[name]).all() for name in mine)
