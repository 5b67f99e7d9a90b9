"""Tasks of people who see the page for the first time, within five clicks each; a page that outlives its service."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.service.page.visitor import Visitor, visitors
from tests.support.processes import Processes, given_caches, job_of, running_service, uploaded

if TYPE_CHECKING:
    from tests.support.digits import Digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH"),
]

CLICKS = 5
ENDED, LIVE = "of three seeds", "of four runs"
# It learns nothing: its weight is lost in AdamW's epsilon.
BAD: dict[str, Any] = {
    "preset": "custom",
    "name": "bad",
    "ce_weight": 0.0,
    "terms": [{"policy": {"kind": "fixed", "temperature": 4.0}, "loss": "kl", "weight": 1e-15}],
}
EPOCHS_SHOWN = """() => Math.max(-1, ...[...document.querySelectorAll('.runs-table td')]
    .map(cell => /^(\\d+) of \\d+/.exec(cell.innerText)).filter(Boolean).map(found => Number(found[1])))"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, digits: "Digits") -> Iterator[Processes]:
    """A service whose machine is said to have four cores, so that a job's runs go on side by side."""
    with running_service(tmp_path_factory.mktemp("service") / "data", CPUS="4") as processes:
        given_caches(processes, digits)
        yield processes


@pytest.fixture(scope="module")
def teacher_id(service: Processes, digits: "Digits") -> str:
    return uploaded(service, digits)


@pytest.fixture(scope="module")
def ended(service: Processes, teacher_id: str) -> dict[str, Any]:
    """Job of two methods and three seeds that has succeeded."""
    posted = service.client.submit({**job_of(teacher_id, "ce", "kd"), "seeds": [0, 1, 2], "name": ENDED})
    job = service.client.wait(posted["id"], timeout_s=300)
    assert job["state"] == "succeeded", job["error"]
    return job


@pytest.fixture
def live(service: Processes, teacher_id: str) -> Iterator[dict[str, Any]]:
    """Job that goes on until it is cancelled, with one run that learns nothing."""
    wanted = {**job_of(teacher_id, "ce", "kd", "atkd", BAD, epochs=10_000), "name": LIVE}
    job = service.client.submit(wanted)
    yield job
    service.client.cancel(job["id"])
    service.client.wait(job["id"], timeout_s=120)


@pytest.fixture
def visitor(service: Processes) -> Iterator[Visitor]:
    with visitors(service.client.base_url) as open_visitor:
        yield open_visitor


def started(service: Processes, visitor: Visitor) -> dict[str, Any]:
    """The job to whose view the visitor was led; it is cancelled."""
    visitor.page.wait_for_url(re.compile("/jobs/job_"))
    visitor.settle()
    [job_id] = re.findall(r"job_\w+", visitor.page.url)
    job = service.client.job(job_id)
    service.client.cancel(job["id"])
    return job


def write_pictures(digits: "Digits", folder: Path) -> None:
    """Digits as people have pictures: a folder for each split and class."""
    for split, data in (("train", digits.train), ("test", digits.test)):
        for index in range(100):
            place = folder / split / f"digit {data.labels_N[index]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.take(slice(index, index + 1)).squeeze()).save(place / f"{index}.png")


def test_own_folder_and_teacher_become_a_job(
    service: Processes, digits: "Digits", visitor: Visitor, tmp_path: Path
) -> None:
    write_pictures(digits, service.data_dir / "pictures")
    given = digits.preprocessing
    own = tmp_path / "own.onnx"
    shutil.copyfile(digits.teacher_spec.path, own)
    visitor.open("/teachers")
    visitor.choose_file("ONNX file", own)
    visitor.write("Name (the file's", "my own")
    visitor.write("Mean of each channel", ", ".join(map(str, given.mean)))
    visitor.write("Standard deviation", ", ".join(map(str, given.std)))
    visitor.click("button", "Upload")
    visitor.click("button", "New job with it")
    visitor.write("Path", "pictures")
    visitor.click("button", "Start the job")
    job = started(service, visitor)
    assert job["plan"]["dataset"]["path"] == "pictures"
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_a_new_temperature_is_tried_and_becomes_a_job(
    service: Processes, ended: dict[str, Any], visitor: Visitor
) -> None:
    visitor.open("/temperatures")
    visitor.write("Expression", "clip(sharpness / 2, 1, 9)")
    visitor.page.get_by_text("T from").wait_for()
    visitor.click("button", "Use it in a job")
    visitor.write("Name", "my temperature")
    visitor.click("button", "Start the job")
    job = started(service, visitor)
    assert job["name"] == "my temperature"
    assert job["plan"]["methods"][-1]["terms"][0]["policy"]["temperature"] == "clip(sharpness / 2, 1, 9)"
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_methods_are_compared_from_the_list(ended: dict[str, Any], visitor: Visitor) -> None:
    visitor.open("/jobs")
    visitor.click("link", ENDED)
    visitor.click("tab", "Results")
    table = visitor.page.locator(".results-table").first
    table.get_by_text("Difference to ce [95 %]").wait_for()
    [row] = [text for text in table.locator("tbody tr").all_inner_texts() if text.startswith("kd")]
    assert re.search(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\] (above 0|below 0|includes 0)", row)
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_a_bad_run_is_found_and_stopped_from_the_list(
    service: Processes, live: dict[str, Any], visitor: Visitor
) -> None:
    visitor.open("/jobs")
    visitor.click("link", LIVE)
    bad = visitor.page.get_by_label("Runs that need attention").get_by_role("listitem").filter(has_text="bad")
    visitor.click("button", "Stop", within=bad)
    visitor.click("button", "Stop", within=visitor.page.get_by_role("alertdialog"))
    [bad_id] = [run["id"] for run in service.client.runs(live["id"]) if run["method"] == "bad"]
    for event in service.client.events(live["id"]):
        if event["run_id"] == bad_id and event["data"].get("state") == "cancelled":
            break
    assert sum(run["state"] == "running" for run in service.client.runs(live["id"])) == 3
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_a_student_is_downloaded(ended: dict[str, Any], visitor: Visitor, tmp_path: Path) -> None:
    visitor.open("/jobs")
    visitor.click("link", ENDED)
    visitor.click("tab", "Runs")
    visitor.click("link", re.compile(r"kd"), within=visitor.page.locator(".runs-table"))
    visitor.click("tab", "Files")
    with visitor.page.expect_download() as download:
        visitor.click("link", "student.safetensors")
    student = tmp_path / "student.safetensors"
    download.value.save_as(student)
    with safe_open(student, "np") as tensors:
        assert tensors.keys()
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_an_open_page_goes_on_after_api_and_engine_were_killed(
    service: Processes, live: dict[str, Any], visitor: Visitor
) -> None:
    visitor.open(f"/jobs/{live['id']}?tab=runs")
    visitor.page.wait_for_function(f"({EPOCHS_SHOWN})() >= 3")
    for name in ("api", "engine"):
        service.kill(name)
    seen = visitor.page.evaluate(EPOCHS_SHOWN)
    for name in ("api", "engine"):
        service.start(name)
    visitor.page.wait_for_function(f"({EPOCHS_SHOWN})() > {seen}", timeout=180_000)
    assert service.client.job(live["id"])["state"] == "running"


def test_a_run_is_deleted_after_a_question_that_says_what_it_frees(
    service: Processes, ended: dict[str, Any], visitor: Visitor
) -> None:
    run_id, *others = ended["run_ids"]
    visitor.open(f"/runs/{run_id}")
    visitor.click("button", "Delete")
    question = visitor.page.get_by_role("alertdialog")
    assert re.search(r"This frees \d", question.inner_text())
    visitor.click("button", "Delete", within=question)
    visitor.page.wait_for_url(re.compile(f"/jobs/{ended['id']}"))
    assert service.client.job(ended["id"])["run_ids"] == others
    assert not visitor.faults()
