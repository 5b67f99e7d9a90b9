"""One service for all of the page's slow tests, and a browser for each of their modules."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.page.visitor import Visitor, visitors
from tests.support.processes import Processes, given_caches, job_of, running_service, uploaded

if TYPE_CHECKING:
    from tests.support.digits import Digits

THREE_SEEDS = "of three seeds"


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, digits: "Digits") -> Iterator[Processes]:
    """A service whose machine is said to have four cores, so that a job's runs go on side by side."""
    with running_service(tmp_path_factory.mktemp("service") / "data", CPUS="4") as processes:
        given_caches(processes, digits)
        yield processes


@pytest.fixture(scope="package")
def teacher_id(service: Processes, digits: "Digits") -> str:
    return uploaded(service, digits)


@pytest.fixture(scope="package")
def ended(service: Processes, teacher_id: str) -> dict[str, Any]:
    """Job of two methods and three seeds that has succeeded."""
    return job_that_ends(service, {**job_of(teacher_id, "ce", "kd"), "seeds": [0, 1, 2], "name": THREE_SEEDS})


@pytest.fixture(scope="package")
def kept(service: Processes, teacher_id: str) -> dict[str, Any]:
    """Job of one run that can be extended."""
    training = {"keep_checkpoint": True, "schedule": {"kind": "step", "milestones": []}}
    return job_that_ends(service, {**job_of(teacher_id, "ce", **training), "name": "that can go on"})


@pytest.fixture(scope="module")
def visitor(service: Processes) -> Iterator[Visitor]:
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium on the PATH")
    with visitors(service.client.base_url) as open_visitor:
        yield open_visitor


def job_that_ends(service: Processes, wanted: dict[str, Any]) -> dict[str, Any]:
    """The document of a job that has succeeded."""
    posted = service.client.submit(wanted)
    job = service.client.wait(posted["id"], timeout_s=300)
    assert job["state"] == "succeeded", job["error"]
    return job
