"""Tasks of people who see the page for the first time, within five clicks each; a page that outlives its service."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.service.page.conftest import THREE_SEEDS
from tests.service.page.visitor import CLICKS, Visitor, started
from tests.support.processes import Processes, job_of

if TYPE_CHECKING:
    from tests.support.digits import Digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH"),
]

LIVE = "of four runs"
# It learns nothing: its weight is lost in AdamW's epsilon.
BAD: dict[str, Any] = {
    "preset": "custom",
    "name": "bad",
    "ce_weight": 0.0,
    "terms": [{"policy": {"kind": "fixed", "temperature": 4.0}, "loss": "kl", "weight": 1e-15}],
}
EPOCHS_SHOWN = """() => Math.max(-1, ...[...document.querySelectorAll('.runs-table td')]
    .map(cell => /^(\\d+) of \\d+/.exec(cell.innerText)).filter(Boolean).map(found => Number(found[1])))"""


@pytest.fixture
def live(service: Processes, teacher_id: str) -> Iterator[dict[str, Any]]:
    """Job that goes on until it is cancelled, with one run that learns nothing."""
    wanted = {**job_of(teacher_id, "ce", "kd", "atkd", BAD, epochs=10_000), "name": LIVE}
    job = service.client.submit(wanted)
    yield job
    service.client.cancel(job["id"])
    service.client.wait(job["id"], timeout_s=120)


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
    visitor.click("button", "Upload", leads_to="/teachers/tch_")
    visitor.click("button", "New job with it", leads_to="/new")
    visitor.write("Path", "pictures")
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
    visitor.click("button", "Use it in a job", leads_to="/new")
    visitor.write("Name", "my temperature")
    job = started(service, visitor)
    assert job["name"] == "my temperature"
    assert job["plan"]["methods"][-1]["terms"][0]["policy"]["temperature"] == "clip(sharpness / 2, 1, 9)"
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()


def test_methods_are_compared_from_the_list(ended: dict[str, Any], visitor: Visitor) -> None:
    visitor.open("/jobs")
    visitor.click("link", THREE_SEEDS)
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
    visitor.click("link", THREE_SEEDS)
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
    visitor.click("button", "Delete", within=question, leads_to=f"/jobs/{ended['id']}")
    assert service.client.job(ended["id"])["run_ids"] == others
    assert not visitor.faults()
