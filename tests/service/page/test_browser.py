"""The page in a real browser (Debian's Chromium), driven as people use it, over a real service.

``RETORT_SCREENSHOTS`` names a folder that keeps pictures of every view at two widths.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from tests.service.page.conftest import job_that_ends
from tests.service.page.visitor import Visitor
from tests.support.processes import Processes, job_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH"),
]

DESK, PHONE = 1280, 390
HOSTILE = "<img src=x onerror=alert(1)> \u202egnp.exe " + "w" * 150


@pytest.fixture(scope="module")
def job(service: Processes, teacher_id: str) -> dict[str, Any]:
    """A job of two methods and two seeds that has ended, whose name is hostile."""
    wanted = {**job_of(teacher_id, "ce", "atkd"), "seeds": [0, 1], "name": HOSTILE, "validation": {"holdout": 0.1}}
    return job_that_ends(service, wanted)


@pytest.fixture(scope="module")
def uploads(service: Processes, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Views of files that were uploaded, with hostile names."""
    folder, client = tmp_path_factory.mktemp("uploads"), service.client
    student, logits = folder / "student.safetensors", folder / "logits.npz"
    client.download(job["run_ids"][0], student.name, student)
    client.export_cache(job["caches"]["test"], logits)
    weights = client.upload_student_file(student, name=HOSTILE[:128])
    imported = client.import_cache(logits, {"kind": "digits"}, split="test", source=HOSTILE)
    return {
        "student-file": f"/student-files/{weights['id']}",
        "imported": f"/caches/{imported['key']}",
        "new-weights": f"/new?student_file={weights['id']}",
        "new-imported": f"/new?cache={imported['key']}",
    }


@pytest.fixture(scope="module")
def views(service: Processes, job: dict[str, Any], teacher_id: str, uploads: dict[str, str]) -> dict[str, str]:
    """Address of every view, by the name of its screenshot."""
    run = job["run_ids"][-1]
    cache = job["caches"]["train"]
    spec = next(each["spec"] for each in service.client.caches() if each["key"] == cache)
    return {
        "jobs": "/jobs",
        "jobs-none": "/jobs?q=nothing-is-called-this",
        "new": "/new",
        "job": f"/jobs/{job['id']}",
        "add-runs": f"/jobs/{job['id']}/add-runs",
        "run": f"/runs/{run}",
        "extend": f"/runs/{run}/extend",
        "temperatures": f"/temperatures?job={job['id']}",
        "gallery": f"/gallery?run={run}",
        "caches": "/caches",
        "cache": f"/caches/{cache}",
        "import": "/caches/import",
        "teachers": "/teachers",
        "teacher": f"/teachers/{teacher_id}",
        "datasets": "/datasets",
        "dataset": f"/datasets/{spec['dataset_fingerprint']}?cache={cache}",
        "student-files": "/student-files",
        **uploads,
    }


@pytest.fixture(scope="module")
def all_views(views: dict[str, str], job: dict[str, Any]) -> dict[str, str]:
    """Views with the tabs of job and run."""
    tabs = {
        "job": ("results", "scatter", "evaluation", "runs", "events", "request"),
        "run": ("evaluation", "files", "log", "events", "config"),
    }
    of_tabs = {f"{of}-{tab}": f"{views[of]}?tab={tab}" for of, names in tabs.items() for tab in names}
    return {**views, **of_tabs, "new-from": f"/new?job={job['id']}", "no-job": "/jobs/job_0000000000000000"}


def test_every_view_is_shown_without_errors_or_other_hosts(views: dict[str, str], visitor: Visitor) -> None:
    """At a phone's width; no console error, nothing asked of another host, nothing wider than the screen."""
    wrong = []
    for name, path in views.items():
        visitor.open(path, PHONE)
        wrong += [f"{name}: {fault}" for fault in visitor.faults()]
    assert not wrong


def test_hostile_names_are_shown_as_text(job: dict[str, Any], visitor: Visitor) -> None:
    visitor.open("/jobs")
    shown = visitor.page.get_by_role("link", name="<img src=x onerror=alert(1)>").first.inner_text()
    assert "<img src=x onerror=alert(1)>" in shown
    visitor.open(f"/jobs/{job['id']}")
    assert "<img src=x" in visitor.page.get_by_role("heading", level=1).inner_text()
    assert visitor.page.locator("img[src='x']").count() == 0
    assert not visitor.faults()


@pytest.mark.timeout(900)
def test_every_tab_is_shown_at_both_widths(all_views: dict[str, str], visitor: Visitor) -> None:
    folder = os.environ.get("RETORT_SCREENSHOTS")
    wrong = []
    for name, path in all_views.items():
        for width in (DESK, PHONE):
            visitor.open(path, width)
            # A job that is not there is a 404, which Chromium calls an error.
            faults = [fault for fault in visitor.faults() if name != "no-job" or "404" not in fault]
            wrong += [f"{name} at {width}: {fault}" for fault in faults]
            if folder is not None:
                # Pictures that are still on their way then are not waited for.
                with contextlib.suppress(TimeoutError):
                    visitor.page.wait_for_load_state("networkidle", timeout=5000)
                Path(folder).mkdir(parents=True, exist_ok=True)
                visitor.page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True)
    assert not wrong


@pytest.mark.timeout(900)
def test_views_have_no_serious_accessibility_violations(all_views: dict[str, str], visitor: Visitor) -> None:
    """axe-core, in light and dark colours."""
    wrong = []
    for theme in ("light", "dark"):
        visitor.open(f"/theme?theme={theme}&next=/jobs")
        for name, path in all_views.items():
            visitor.open(path)
            wrong += [f"{name}, {theme}: {violation}" for violation in visitor.violations()]
    assert not wrong
