"""Requests that people make by the page's forms: what is posted is what was chosen, and a refusal is shown in full."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.client.errors import ApiProblem
from tests.service.page.visitor import CLICKS, Visitor, started
from tests.support.exported_programs import Tiny, exported
from tests.support.processes import Processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH"),
]

DIGITS = "describe: digits"
# Of an upload: names and values in their order. Chromium tells nobody the body of a form with a file.
_KEEP_WHAT_IS_SENT = """() => {
    const send = window.fetch;
    window.fetch = (address, options) => {
        window.sent = [...options.body].map(([name, value]) => [name, String(value)]);
        return send(address, options);
    };
}"""


def shown_json(visitor: Visitor) -> dict[str, Any]:
    """The JSON beside a form, to copy."""
    shown: dict[str, Any] = json.loads(visitor.page.locator(".preview .copyable pre").first.inner_text())
    return shown


def refusal(visitor: Visitor, button: str) -> str:
    """What is said below a button that was pressed; nothing else happens."""
    address, problem = visitor.page.url, visitor.page.locator(".form .problem")
    before = problem.element_handles()
    visitor.click("button", button)
    for each in before:
        each.wait_for_element_state("hidden")
    text = problem.inner_text()
    assert visitor.page.url == address
    return text


def test_runs_are_added_to_a_job(service: Processes, kept: dict[str, Any], visitor: Visitor) -> None:
    visitor.open("/jobs")
    visitor.click("link", kept["name"])
    visitor.click("link", "Add runs")
    visitor.write("Seeds", "0")
    again = "'cnn_s ce seed 0' is in the job's plan already"
    visitor.page.locator(".preview .problem").get_by_text(again).wait_for()
    assert again in refusal(visitor, "Add the runs")
    visitor.write("Seeds", "5, 6")
    visitor.page.locator(".preview").get_by_text("2 runs", exact=True).wait_for()
    assert visitor.page.locator(".preview").get_by_text("Expected time").is_visible()
    wanted = shown_json(visitor)
    visitor.click("button", "Add the runs", leads_to=f"/jobs/{kept['id']}\\?tab=runs")
    visitor.page.locator(".runs-table").get_by_text("cnn_s ce seed 6").wait_for()
    [block] = service.client.job(kept["id"])["plan"]["added"]
    assert block == {**wanted, "students": [{"name": "cnn_s"}]}
    assert block["seeds"] == [5, 6]
    assert visitor.clicks <= CLICKS
    service.client.cancel(kept["id"])
    service.client.wait(kept["id"], timeout_s=120)


def test_a_run_is_extended_or_says_why_not(
    service: Processes, kept: dict[str, Any], ended: dict[str, Any], visitor: Visitor
) -> None:
    [run, *_] = kept["run_ids"]
    visitor.open("/jobs")
    visitor.click("link", kept["name"])
    visitor.click("tab", "Runs")
    visitor.click("link", "cnn_s ce seed 0", within=visitor.page.locator(".runs-table"))
    visitor.click("link", "More epochs")
    visitor.write("Epochs in all", "5")
    job = started(service, visitor, "Train on")
    assert (job["plan"]["extends"]["run"], job["plan"]["training"]["epochs"]) == (run, 5)
    assert visitor.clicks <= CLICKS
    assert not visitor.faults()
    # Of an extended run no others are added.
    assert visitor.page.get_by_role("link", name="Add runs").count() == 0
    visitor.open(f"/runs/{run}/extend")
    visitor.choose("Schedule", "cosine")
    assert "state a `learning_rate`" in refusal(visitor, "Train on")
    visitor.write("Learning rate", "0.002")
    job = started(service, visitor, "Train on")
    restart = {"after_epochs": 2, "learning_rate": 0.002, "schedule": {"kind": "cosine", "final": 0.0}}
    assert job["plan"]["training"]["restarts"] == [restart]
    visitor.open(f"/runs/{job['run_ids'][0]}")
    visitor.page.get_by_text("after 2 epochs: cosine, learning rate 0.002", exact=True).wait_for()
    visitor.open(f"/runs/{job['run_ids'][0]}/extend")
    visitor.page.get_by_text("a warm restart after 2 epochs: cosine, learning rate 0.002", exact=True).wait_for()
    assert not visitor.faults()
    without = ended["run_ids"][-1]
    visitor.open(f"/runs/{without}/extend")
    with pytest.raises(ApiProblem) as refused:
        service.client.extend(without, 4)
    assert refused.value.detail in refusal(visitor, "Train on")
    visitor.write("Epochs in all", "2")
    assert "2 has to be more than 2" in refusal(visitor, "Train on")


def test_logits_are_imported_downloaded_and_become_a_job(
    service: Processes, kept: dict[str, Any], visitor: Visitor, tmp_path: Path
) -> None:
    logits = service.client.export_cache(kept["caches"]["train"], tmp_path / "logits.npz")
    visitor.open("/caches")
    visitor.click("link", "Import logits")
    assert "Choose a file first" in refusal(visitor, "Import")
    visitor.choose_file("File of logits", logits)
    visitor.choose("Dataset", DIGITS)
    visitor.write("Where they come from", "a <b>notebook</b>")
    visitor.click("button", "Classes, views and storage")
    visitor.click("checkbox", "Decode a large dataset first")
    visitor.page.locator(".copyable pre").filter(has_text="prepare=true -F file=@FILE").wait_for()
    visitor.page.evaluate(_KEEP_WHAT_IS_SENT)
    assert "the file has logits of 2 views, and `views` says 1" in refusal(visitor, "Import")
    sent = visitor.page.evaluate("window.sent")
    assert [name for name, _ in sent][-1] == "file"
    assert {"split": "train", "prepare": "true"}.items() <= dict(sent).items()
    assert "dataset" in dict(sent)
    visitor.choose("Augmentation", "crop_flip")
    visitor.write("Count", "2")
    visitor.write("Pad", "1")
    visitor.choose("Flip", "no")
    visitor.click("button", "Import", leads_to="/caches/[0-9a-f]{64}")
    visitor.page.get_by_text("none: imported logits, a <b>notebook</b>").wait_for()
    [key] = re.findall("[0-9a-f]{64}", visitor.page.url)
    with visitor.page.expect_download() as download:
        visitor.click("link", "npz")
    again = service.client.export_cache(key, tmp_path / "again.npz")
    assert Path(download.value.path()).read_bytes() == again.read_bytes()
    visitor.click("button", "New job with it", leads_to="/new")
    plan = started(service, visitor)["plan"]
    assert service.client.cache(key)["use"]["jobs_total"] == 1
    views = {"augmentation": {"recipe": "crop_flip", "pad": 1, "flip": False}, "count": 2, "seed": 0}
    # What trains without a teacher sees fresh views, by the dataset's recipe.
    assert (plan["dataset"]["kind"], plan["views"]) == ("digits", {**views, "fresh": True})


def test_uploads_of_students_are_used_and_deleted(
    service: Processes, kept: dict[str, Any], visitor: Visitor, tmp_path: Path
) -> None:
    weights, client = tmp_path / "student.safetensors", service.client
    client.download(kept["run_ids"][0], weights.name, weights)
    visitor.open("/student-files")
    visitor.choose_file("Safetensors file", exported(Tiny(), tmp_path / "tiny.pt2"))
    visitor.click("button", "Upload", leads_to="/student-files/stf_")
    visitor.page.get_by_text("1 x 8 x 8, 10 classes").wait_for()
    visitor.click("button", "New job with it", leads_to="/new")
    visitor.choose("Teacher", service.client.teacher(kept["teacher"])["name"])
    visitor.choose("Dataset", DIGITS)
    [student] = started(service, visitor)["plan"]["students"]
    name = f"uploaded/{next(client.student_files(name='tiny'))['id']}"
    assert student["name"] == name
    visitor.open("/student-files")
    visitor.choose_file("Safetensors file", weights)
    visitor.click("button", "Upload", leads_to="/student-files/stf_")
    [id] = re.findall(r"stf_\w+", visitor.page.url)
    visitor.click("button", "New job with it", leads_to="/new")
    assert shown_json(visitor)["students"] == [{"name": "resnet8", "init": {"upload": id}}]
    visitor.choose("First weights of resnet8", "drawn from the seed")
    visitor.choose("Students", "cnn_s (30,196 parameters)")
    visitor.page.keyboard.press("Escape")
    visitor.choose("First weights of cnn_s", "uploaded weights, 24,285 parameters: student.safetensors")
    wanted = ["resnet8", {"name": "cnn_s", "init": {"upload": id}}]
    visitor.page.locator(".preview").get_by_text(id).first.wait_for()
    assert shown_json(visitor)["students"] == wanted
    visitor.open("/student-files")
    visitor.click("link", "student.safetensors")
    visitor.click("button", "Delete")
    question = visitor.page.get_by_role("alertdialog")
    assert re.search(r"This frees \d", question.inner_text())
    visitor.click("button", "Delete", within=question, leads_to="/student-files$")
    assert id not in {file["id"] for file in client.student_files()}
    assert not visitor.faults()


def test_views_and_training_of_a_job_are_those_that_were_chosen(
    service: Processes, teacher_id: str, visitor: Visitor
) -> None:
    """Mixup, CutMix, a second view, a checkpoint that is kept: all by the form, into the plan."""
    visitor.open(f"/new?teacher={teacher_id}")
    visitor.choose("Dataset", DIGITS)
    visitor.click("button", "Training")
    visitor.click("checkbox", "Keep checkpoint")
    visitor.click("button", "Views of the pictures")
    visitor.write("Count", "4")
    visitor.choose("Augmentation", "resized_crop")
    visitor.write("Scale", "0.5, 1")
    visitor.choose("Flip", "no")
    first = visitor.page.get_by_role("group", name="Augmentation")
    for name in ("Mixup", "Cutmix", "Rand augment", "Second view"):
        visitor.click("checkbox", name, within=first)
    for name, alpha in (("Mixup", "0.3"), ("Cutmix", "0.9")):
        part = first.get_by_role("group", name=name)
        part.get_by_label("Alpha").fill(alpha)
        part.get_by_label("Probability").fill("0.5")
    visitor.click("checkbox", "Rand augment", within=first)
    second = first.get_by_role("group", name="Second view")
    visitor.click("checkbox", "Random erasing", within=second)
    second.get_by_label("Value").fill("7")
    visitor.page.locator(".preview").get_by_text('"value"', exact=True).wait_for()
    assert not visitor.violations()
    posted = shown_json(visitor)
    plan = started(service, visitor)["plan"]
    recipe = plan["views"]["augmentation"]
    assert (recipe["recipe"], recipe["scale"], recipe["flip"], plan["views"]["count"]) == (
        "resized_crop",
        [0.5, 1],
        False,
        4,
    )
    assert recipe["mixup"] == {"alpha": 0.3, "probability": 0.5} == posted["views"]["augmentation"]["mixup"]
    assert recipe["cutmix"] == {"alpha": 0.9, "probability": 0.5}
    assert "rand_augment" not in recipe
    [(operation, erasing)] = recipe["second_view"].items()
    assert (operation, erasing["value"]) == ("random_erasing", 7)
    assert plan["training"]["keep_checkpoint"] is True
    assert not visitor.faults()
