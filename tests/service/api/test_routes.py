"""The routes over a real socket: what is made, listed, cancelled and reported."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from rich.console import Console

from service.api import dependencies
from service.api.schemas.jobs import JobRequest
from service.cli import render
from service.cli.job_commands.reports import results
from service.db.engine_queries import EngineQueries
from service.db.ids import new_id
from service.db.models import DatasetRecord, EngineRecord, utc_now
from service.db.queries.api_queries import digest_of
from service.db.states import State
from service.gpus import GpuReport
from store import CacheWriter
from tests.support.filled import make_cache
from tests.support.service_helpers import PREPROCESSING, Api, finish, make_settings, running_api, start_run
from tests.support.store_cases import make_spec
from workers.teacher.imports.imported_specs import imported_preprocessing

pytest_plugins = ["tests.support.service_fixtures"]


def problem(response: httpx2.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem that this response is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:retort:problem:{slug}", body
    return body


def pages(api: Api, path: str, limit: int, **params: str) -> Iterator[dict[str, Any]]:
    """Every page of a list."""
    query: dict[str, Any] = {"limit": limit, **params}
    while True:
        page = api.client.get(path, params=query).json()
        yield page
        if not page["has_more"]:
            return
        query["after"] = page["last_id"]


# ---------------------------------------------------------------------------------------------------- what can be had


def test_methods_and_students_come_with_their_schemas(shared_api: Api) -> None:
    """A client can build a form from them."""
    methods = shared_api.client.get("/v1/methods").json()
    kd = next(method for method in methods["data"] if method["id"] == "kd")
    assert kd["defaults"]["cifar"]["temperature"] == 4.0
    assert "temperature" in kd["json_schema"]["properties"]
    assert {"fixed", "kl"} <= {part["kind"] for part in (*methods["policies"], *methods["losses"])}
    students = shared_api.client.get("/v1/students").json()
    assert {"resnet8", "torchvision/resnet18"} <= {student["id"] for student in students["data"]}
    assert not students["has_more"]


# ----------------------------------------------------------------------------------------------------------- datasets


def test_a_data_set_gets_a_name_that_jobs_can_use(api: Api) -> None:
    """By name or id; the plan then holds its description."""
    body = {"name": "my digits", "spec": {"kind": "digits"}}
    made = api.client.post("/v1/datasets", json=body)
    assert made.status_code == 201
    dataset = made.json()
    assert made.headers["location"] == f"/v1/datasets/{dataset['id']}"
    assert (dataset["classes"], dataset["samples"]) == (10, {"train": 1442, "test": 355})
    again = api.client.post("/v1/datasets", json=body)
    assert (again.status_code, again.json()["id"]) == (200, dataset["id"])
    for name in ("my digits", dataset["id"]):
        job = api.post_job(dataset=name)
        assert job["plan"]["dataset"] == {"kind": "digits"}
        api.context.job_control.cancel_job(job["id"])
    # A list examines none of them again.
    assert api.client.get("/v1/datasets").json()["data"] == [{**dataset, "notes": None}]
    assert api.client.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    problem(api.client.get(f"/v1/datasets/{dataset['id']}"), 404, "not-found")


def test_a_name_that_is_taken_is_refused(api: Api) -> None:
    """The message says by whom."""
    folder(api.settings.data_root / "pets")
    assert api.client.post("/v1/datasets", json={"name": "d", "spec": {"kind": "digits"}}).status_code == 201
    other = {"name": "d", "spec": {"kind": "folder", "path": "pets"}}
    assert "choose another name" in problem(api.client.post("/v1/datasets", json=other), 409, "conflict")["detail"]


def test_a_data_set_is_one_in_whatever_normal_form_its_name_comes(api: Api) -> None:
    body = {"name": "the\u0301", "spec": {"kind": "digits"}}
    made = api.client.post("/v1/datasets", json=body)
    assert (made.status_code, made.json()["name"]) == (201, "th\u00e9")
    assert api.client.post("/v1/datasets", json=body | {"name": "th\u00e9"}).status_code == 200


def test_a_folder_of_pictures_may_stay_files(api: Api) -> None:
    """Another storage is another description; one that was stored before there was a choice is decoded."""
    folder(api.settings.data_root / "pets", tuple("0123456789"))
    spec = {"kind": "folder", "path": "pets", "storage": "files"}
    made = api.client.post("/v1/datasets", json={"name": "streamed", "spec": spec})
    assert (made.status_code, made.json()["spec"]) == (201, {**spec, "image_size": None})
    assert api.client.post("/v1/datasets", json={"name": "streamed", "spec": spec}).status_code == 200
    decoded = {**spec, "storage": "decoded"}
    problem(api.client.post("/v1/datasets", json={"name": "streamed", "spec": decoded}), 409, "conflict")
    assert api.post_job(dataset="streamed")["plan"]["dataset"]["storage"] == "files"

    row = DatasetRecord(id=new_id("ds"), name="old", spec={"kind": "folder", "path": "pets", "image_size": None})
    api.queries.add_dataset(row)
    assert api.client.post("/v1/datasets", json={"name": "old", "spec": decoded}).status_code == 200
    problem(api.client.post("/v1/datasets", json={"name": "old", "spec": spec}), 409, "conflict")

    for wrong, slug, message in (
        ({**spec, "storage": "tape"}, "invalid-request", "'decoded' or 'files'"),
        ({"kind": "digits", "storage": "files"}, "unknown-name", "field of DigitsDataset 'storage'"),
    ):
        told = problem(api.client.post("/v1/datasets", json={"name": "new", "spec": wrong}), 422, slug)
        assert message in json.dumps(told)


@pytest.mark.parametrize("control", ["\x00", "\n", "\x1b", "\x7f", "\x9b"])
def test_a_name_has_no_control_characters(shared_api: Api, control: str) -> None:
    """It is printed on terminals, some of which obey the last one, too."""
    body = {"name": f"a{control}31m", "spec": {"kind": "digits"}}
    problem(shared_api.client.post("/v1/datasets", json=body), 422, "invalid-request")


def folder(path: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """A folder that looks like a dataset; nobody decodes it here."""
    for split in ("train", "test"):
        for name in classes:
            (path / split / name).mkdir(parents=True)
            (path / split / name / "1.png").write_bytes(b"x")


@pytest.mark.parametrize("path", ["../secret", "/etc", "link", "nothing"])
def test_a_data_set_outside_the_root_or_missing_is_refused(api: Api, path: str) -> None:
    """Nothing is remembered of it."""
    folder(api.settings.data_root.parent / "secret")
    (api.settings.data_root / "link").symlink_to(api.settings.data_root.parent / "secret")
    body = {"name": "d", "spec": {"kind": "folder", "path": path}}
    problem(api.client.post("/v1/datasets", json=body), 422, "invalid-dataset")
    problem(api.client.post("/v1/jobs", json=api.job_body(dataset=body["spec"])), 422, "invalid-dataset")
    assert api.client.get("/v1/datasets").json()["data"] == []
    assert api.client.get("/v1/jobs").json()["data"] == []


def test_an_empty_class_folder_is_named(api: Api) -> None:
    """So that it can be filled."""
    folder(api.settings.data_root / "pets")
    (api.settings.data_root / "pets/test/dog/1.png").unlink()
    body = {"name": "pets", "spec": {"kind": "folder", "path": "pets"}}
    assert "test/dog is empty" in problem(api.client.post("/v1/datasets", json=body), 422, "invalid-dataset")["detail"]


# --------------------------------------------------------------------------------------------------------------- jobs


def test_a_posted_job_has_a_run_per_student_method_and_seed(api: Api) -> None:
    """Queued, in the order of the plan."""
    body = api.job_body(seeds=[0, 1], name="first")
    response = api.client.post("/v1/jobs", json=body)
    assert response.status_code == 201
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["name"], job["state"], job["teacher"]) == ("first", "queued", body["teacher"])
    assert job["progress"]["runs"]["queued"] == 4
    runs = api.client.get(f"/v1/jobs/{job['id']}/runs").json()["data"]
    assert [run["id"] for run in runs] == job["run_ids"]
    assert [(run["method"], run["seed"]) for run in runs] == [("ce", 0), ("ce", 1), ("kd", 0), ("kd", 1)]
    assert api.client.get(f"/v1/runs/{runs[3]['id']}").json() == runs[3]


def test_a_dry_run_warns_of_methods_that_need_more_epochs(shared_api: Api) -> None:
    """The warm-up of a preset is that of the papers' long trainings; who wants it cut short may have it so."""
    methods = ["kd", {"preset": "dkd", "warmup_epochs": 3}, "rld", "annealing_kd"]
    body = shared_api.job_body(methods=methods, training={"epochs": 3})
    preview = shared_api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    assert preview["warnings"] == [
        "method 'rld': its distillation terms warm up over 20 epochs, and training.epochs is 3: they reach 15% of "
        "their weight; set warmup_epochs to 3 or less, or train for longer",
        "method 'annealing_kd': it trains on the teacher alone for 10 epochs, and training.epochs is 3: the "
        "cross-entropy, which comes after that, never begins; shorten that phase, or train for longer",
    ]


def test_a_dry_run_shows_the_runs_and_makes_nothing(api: Api) -> None:
    """But checks as a real one."""
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body()).json()
    assert preview["object"] == "job_preview"
    assert [run["name"] for run in preview["runs"]] == ["cnn_s ce seed 0", "cnn_s kd seed 0"]
    assert preview["views"] == {"student": [8, 8], "teacher": [8, 8]}
    assert preview["warnings"] == []
    assert api.client.get("/v1/jobs").json()["data"] == []
    windows = json.dumps(api.job_body()).encode("utf-8-sig")
    headers = {"Content-Type": "application/json"}
    answer = api.client.post("/v1/jobs", params={"dry_run": True}, content=windows, headers=headers)
    assert answer.status_code == 200
    bad = api.job_body(methods=["kdd"])
    problem(api.client.post("/v1/jobs", params={"dry_run": True}, json=bad), 422, "unknown-name")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"validation": {"holdout": 0.1}}, 200),
        ({"validation": {"holdout": 0.1, "seed": 1, "stratified": False}, "test": None}, 200),
        ({"validation": {"holdout": 0.1}, "training": {"keep": "best", "early_stopping": {"patience": 3}}}, 200),
        ({"training": {"keep": "best"}}, 422),
        ({"training": {"early_stopping": {}}}, 422),
        ({"test": None}, 422),
        ({"export": {"int8": {}}, "validation": {"holdout": 0.1}}, 200),
        ({"export": {"int8": {}}}, 422),
        ({"evaluate": True, "students": [], "methods": []}, 200),
        ({"evaluate": True}, 422),
        ({"validation": {"holdout": 1.0}}, 422),
        ({"validation": {"share": 0.1}}, 422),
    ],
)
def test_a_dry_run_knows_which_splits_a_job_needs(api: Api, changes: dict[str, object], status: int) -> None:
    answer = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(**changes))
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(("first", "told"), [(-2, "holds the label -2"), (0, "has 10 classes")])
def test_a_dry_run_says_which_labels_a_job_would_fail_of(api: Api, first: int, told: str) -> None:
    labels = np.tile(np.arange(first, first + 9), 2)
    arrays = {f"{split}_images": np.zeros((18, 8, 8), np.uint8) for split in ("train", "test")}
    np.savez(api.settings.data_root / "nine.npz", train_labels=labels, test_labels=labels, **arrays)
    body = api.job_body(dataset={"kind": "npz", "path": "nine.npz"})
    answer = api.client.post("/v1/jobs", params={"dry_run": True}, json=body)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_a_dry_run_tells_what_each_network_sees_of_a_box(api: Api) -> None:
    """And that a dataset which is stored smaller than the teacher's input has no more to give."""
    folder(api.settings.data_root / "pets", tuple("0123456789"))
    teacher = api.upload(preprocessing=PREPROCESSING.model_copy(update={"size": (8, 8)}).model_dump_json()).json()["id"]
    views = {"augmentation": {"recipe": "resized_crop", "size": [24, 16]}}
    for image_size, warnings in (([32, 32], 0), ([8, 4], 1), (None, 0)):
        dataset = {"kind": "folder", "path": "pets", "image_size": image_size}
        body = api.job_body(teacher=teacher, dataset=dataset, views=views)
        preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
        assert preview["views"] == {"student": [24, 16], "teacher": [8, 8]}
        assert len(preview["warnings"]) == warnings
    body = api.job_body(dataset={"kind": "folder", "path": "pets"})
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    assert preview["views"] == {"student": None, "teacher": None}


def test_jobs_are_listed_newest_first_and_by_state(api: Api) -> None:
    """With the counts of their runs."""
    ids = [api.post_job()["id"] for _ in range(3)]
    finish(api.records, ids[0])
    listed = api.client.get("/v1/jobs").json()
    assert [job["id"] for job in listed["data"]] == ids[::-1]
    done = api.client.get("/v1/jobs", params={"status": "succeeded"}).json()["data"]
    assert [(job["id"], job["progress"]["runs"]["succeeded"]) for job in done] == [(ids[0], 2)]


def test_a_list_of_jobs_has_neither_what_was_posted_nor_the_ids_of_runs(api: Api) -> None:
    """Which are as long as the poster likes, and stand in the document of one job, the same otherwise."""
    job = api.post_job()
    [listed] = api.client.get("/v1/jobs").json()["data"]
    whole = {"plan", "run_ids", "webhook"}
    assert job == listed | {name: job[name] for name in whole}
    assert set(job) - set(listed) == whole


def test_a_page_of_long_documents_has_fewer_of_them_and_says_that_there_are_more(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one at least."""
    job = api.post_job(seeds=[0, 1, 2])
    path = f"/v1/jobs/{job['id']}/runs"
    [whole] = pages(api, path, 100)
    for most, sizes, limit in ((len(json.dumps(whole["data"][:2])), [2, 2, 2], 99), (1, [1] * 6, 98)):
        monkeypatch.setattr(dependencies, "PAGE_BYTES", most)
        # Pages of another limit: those of before are kept until the job changes.
        found = list(pages(api, path, limit))
        assert [len(page["data"]) for page in found] == sizes
        assert [run for page in found for run in page["data"]] == whole["data"]


def test_a_page_is_as_long_as_its_bytes_and_not_its_characters(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        api.post_job(name="\u84b8" * 200)
    answer = api.client.get("/v1/jobs")
    monkeypatch.setattr(dependencies, "PAGE_BYTES", len(answer.content) - 200)
    assert [len(page["data"]) for page in pages(api, "/v1/jobs", 100)] == [1, 1]


def test_pages_do_not_move_when_jobs_are_posted_meanwhile(api: Api) -> None:
    """Every job of the beginning comes once."""
    posted = [api.post_job()["id"] for _ in range(5)]
    seen = []
    for page in pages(api, "/v1/jobs", 2):
        seen += [job["id"] for job in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        api.post_job()
    assert seen == posted[::-1]


def test_runs_are_paged_in_the_order_of_the_plan(api: Api) -> None:
    """Two at a time."""
    job = api.post_job(seeds=[0, 1, 2])
    found = list(pages(api, f"/v1/jobs/{job['id']}/runs", 4))
    assert [run["index"] for page in found for run in page["data"]] == [0, 1, 2, 3, 4, 5]
    assert [len(page["data"]) for page in found] == [4, 2]


def test_cancelling_is_idempotent(api: Api) -> None:
    """200 as often as it is asked for."""
    job = api.post_job()
    for _ in range(2):
        response = api.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")


# -------------------------------------------------------------------------------------------------------- idempotency


def test_the_same_key_and_body_give_the_same_job(api: Api) -> None:
    """Also when the teacher has gone meanwhile; another spelling of the body is the same body."""
    body, key = api.job_body(), {"Idempotency-Key": "k1"}
    first = api.client.post("/v1/jobs", json=body, headers=key)
    assert first.status_code == 201
    finish(api.records, first.json()["id"])
    assert api.client.delete(f"/v1/teachers/{body['teacher']}").status_code == 204
    spelled = dict(reversed(body.items()))
    again = api.client.post("/v1/jobs", json={**spelled, "seeds": [0]}, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.headers["location"] == first.headers["location"]


def test_a_key_that_was_used_before_an_upgrade_is_known_after_it() -> None:
    """The digest is the one that the version without priorities has stored."""
    body = {"teacher": "tch_1", "dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["kd"]}
    digests = [digest_of(JobRequest(**body, **more).model_dump(mode="json")) for more in ({}, {"priority": 1})]
    assert digests[0] == "b96bf9f8a77eede4c14173877c8229b1deaa88431dd73a4815a755370d042e07"
    assert digests[1] != digests[0]


def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    """And makes no job."""
    body, key = api.job_body(), {"Idempotency-Key": "k1"}
    api.client.post("/v1/jobs", json=body, headers=key)
    other = api.client.post("/v1/jobs", json={**body, "seeds": [7]}, headers=key)
    assert "'k1'" in problem(other, 422, "idempotency-mismatch")["detail"]
    assert len(api.client.get("/v1/jobs").json()["data"]) == 1


# ---------------------------------------------------------------------------------------------------- metrics, report


def train(api: Api, *, attempts: int = 1) -> tuple[str, str]:
    """A job whose first run has told two epochs, the first one in every attempt."""
    job = api.post_job()
    api.records.claim_job()
    run = job["run_ids"][0]
    for attempt in range(1, attempts + 1):
        assert start_run(api.records, run) == attempt
        for epoch in (1, 2):
            metrics = {"epoch": epoch, "top1": (10 * epoch + attempt) / 100, "agreement": 0.5}
            told = [(epoch, {"type": "epoch", "epoch": epoch, "epochs": 3, "metrics": metrics})]
            progress = {"epoch": epoch, "metrics": metrics}
            api.records.record_events(job["id"], run, attempt, told, progress=progress)
        if attempt < attempts:
            api.records.move_run(run, attempt, State.LOST)
    return job["id"], run


def test_metrics_have_one_entry_per_epoch_the_newest_attempts(api: Api) -> None:
    """An epoch that was trained again is not there twice."""
    _, run = train(api, attempts=2)
    metrics = api.client.get(f"/v1/runs/{run}/metrics").json()
    assert [(line["epoch"], line["top1"]) for line in metrics["data"]] == [(1, 0.12), (2, 0.22)]
    shown = api.client.get(f"/v1/runs/{run}").json()
    assert (shown["epoch"], shown["attempt"], shown["metrics"]["top1"]) == (2, 2, 0.22)


def test_the_report_has_a_row_per_run_as_json_and_csv(api: Api) -> None:
    """Of a run in training what it has reached, of a finished one its result."""
    job, run = train(api)
    other = api.client.get(f"/v1/jobs/{job}").json()["run_ids"][1]
    start_run(api.records, other)
    last = {"top1": 0.9, "agreement": 0.8, "student_temperature_mean": 4.0, "ece": 0.1}
    best = {"epoch": 2, "top1": 0.95, "validation_top1": 0.96}
    result = {"last": last, "best": best, "best_epoch": 2, "seconds": 12.5, "images_per_s": 100.0, "views_seen": 3}
    result["environment"] = {"device": "cuda", "device_name": "NVIDIA H200"}
    api.records.move_run(other, 1, State.SUCCEEDED, result=result)
    api.records.update_job(job, teacher_forwards={"run": 1797, "avoided": 5000}, teacher_accuracy=0.97)
    api.records.update_job(job, teacher_views_accuracy=0.62)
    report = api.client.get(f"/v1/jobs/{job}/report").json()
    assert report["teacher"] == {"accuracy": 0.97, "views_accuracy": 0.62, "test": None, "validation": None}
    shown = io.StringIO()
    Console(file=shown, width=200).print(results(report))
    assert "top-1 97.0 % on the test split, 62.0 % on the training views" in shown.getvalue()
    assert report["teacher_forwards"] == {"run": 1797, "avoided": 5000}
    first, second = report["rows"]
    assert (first["run_id"], first["state"]) == (run, "running")
    assert (first["accuracy_last"], first["accuracy_best"]) == (0.21, None)
    assert (second["accuracy_last"], second["accuracy_best"], second["best_epoch"]) == (0.9, 0.96, 2)
    assert (second["student_temperature"], second["seconds"], second["method"]) == (4.0, 12.5, "kd")
    assert (first["device"], second["device"]) == (None, "NVIDIA H200")
    assert (first["views_seen"], second["views_seen"]) == (None, 3)
    shown = io.StringIO()
    Console(file=shown, width=200).print(render.report(report))
    header, _, line = (line.rstrip() for line in shown.getvalue().splitlines())
    assert header.endswith("device")
    assert line.endswith("12.5  NVIDIA H200")
    text = api.client.get(f"/v1/jobs/{job}/report", headers={"Accept": "text/csv"})
    assert text.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(text.text)))
    assert rows[1]["accuracy_last"] == "0.9"
    assert list(rows[0]) == list(first)


def test_report_as_csv_has_no_formula(api: Api) -> None:
    job, run = train(api)
    result = {"last": {"top1": 0.5, "nll": -0.5}, "environment": {"device": "=HYPERLINK(1)"}}
    api.records.move_run(run, 1, State.SUCCEEDED, result=result)
    text = api.client.get(f"/v1/jobs/{job}/report", headers={"Accept": "text/csv"}).text
    row = next(csv.DictReader(io.StringIO(text)))
    assert (row["device"], row["nll"]) == ("'=HYPERLINK(1)", "-0.5")


# ------------------------------------------------------------------------------------------------------------- caches


def test_caches_are_listed_verified_and_deleted(api: Api) -> None:
    """A flipped bit is found."""
    keys = sorted(make_cache(api.settings.caches_dir, number, whole=number == 0) for number in range(2))
    listed = [entry for page in pages(api, "/v1/caches", 1) for entry in page["data"]]
    assert [entry["key"] for entry in listed] == keys
    imported = make_spec(preprocessing=imported_preprocessing("logits", None))
    CacheWriter(api.settings.caches_dir, imported)
    for wanted, found in (("true", [imported.key]), ("false", keys)):
        parts = list(pages(api, "/v1/caches", 1, imported=wanted))
        assert [entry["key"] for page in parts for entry in page["data"]] == found
        assert {page["total_bytes"] for page in parts} == {api.client.get("/v1/caches").json()["total_bytes"]}
    assert "imported" in str(problem(api.client.get("/v1/caches?imported=perhaps"), 422, "invalid-request"))
    whole = next(entry for entry in listed if entry["state"] == "complete")
    assert (whole["rows_committed"], whole["spec"]["classes"]) == (5, 3)
    assert whole["provenance"] == {"device": "cpu"}
    path = f"/v1/caches/{whole['key']}"
    detail = api.client.get(path).json()
    assert detail == {**whole, "use": detail["use"]}
    assert api.client.post(f"{path}/verify").json()["ok"]
    folder = api.settings.caches_dir / whole["key"] / "logits" / "c"
    chunk = next(file for file in folder.rglob("*") if file.is_file())
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    report = api.client.post(f"{path}/verify").json()
    assert not report["ok"]
    assert "logits" in report["problems"][0]
    assert api.client.delete(path).status_code == 204
    problem(api.client.get(path), 404, "not-found")
    problem(api.client.get("/v1/caches/nonsense"), 422, "invalid-request")


def test_a_cache_in_use_is_not_deleted(api: Api) -> None:
    """Until its job has ended."""
    key = make_cache(api.settings.caches_dir)
    job = api.post_job()
    api.records.claim_job()
    api.records.update_job(job["id"], caches={"train": key, "test": "d" * 64})
    assert job["id"] in problem(api.client.delete(f"/v1/caches/{key}"), 409, "conflict")["detail"]
    api.records.move_job(job["id"], State.FAILED)
    assert api.client.delete(f"/v1/caches/{key}").status_code == 204


# ------------------------------------------------------------------------------------------------------------- health


def test_ready_means_migrated_and_an_engine_that_lives(api: Api) -> None:
    """And says what is missing otherwise."""
    assert api.client.get("/healthz").json() == {"status": "ok"}
    response = api.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["no engine leads: start `retort engine`"]
    records = EngineQueries(api.context.database, "engine")
    records.acquire_lease()
    response = api.client.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (200, True)
    records.record_gpus(GpuReport(promised=8, failure="CUDA shows 0 of them").model_dump(mode="json"))
    response = api.client.get("/readyz")
    assert response.status_code == 503
    [reason] = response.json()["reasons"]
    assert reason.startswith("8 GPUs are promised to runs and none works: CUDA shows 0 of them. Their work fails")
    records.record_gpus(GpuReport(promised=8, names=("H100",) * 8).model_dump(mode="json"))
    assert api.client.get("/readyz").status_code == 200
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).heartbeat_at = utc_now().replace(year=2020)
    response = api.client.get("/readyz")
    assert response.status_code == 503
    assert "last heard of" in response.json()["reasons"][0]
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).heartbeat_at = utc_now().replace(year=2090)
    response = api.client.get("/readyz")
    assert response.status_code == 503
    assert "no engine is known to work: the last heartbeat is of 2090-" in response.json()["reasons"][0]


def test_an_unmigrated_database_is_not_ready(tmp_path: Path) -> None:
    """The API answers nonetheless."""
    with running_api(make_settings(tmp_path), migrate=False) as api:
        response = api.client.get("/readyz")
        assert response.status_code == 503
        assert "newest migration" in response.json()["reasons"][0]
        assert problem(api.client.get("/v1/jobs"), 503, "database-unavailable")["status"] == 503


def test_every_answer_carries_a_request_id(shared_api: Api) -> None:
    """The client's own if it is harmless."""
    made = shared_api.client.get("/healthz").headers["x-request-id"]
    assert made.startswith("req_")
    given = shared_api.client.get("/healthz", headers={"X-Request-Id": "my-id.1"})
    assert given.headers["x-request-id"] == "my-id.1"
    harmful = shared_api.client.get("/nope", headers={"X-Request-Id": "a b<script>"})
    assert harmful.headers["x-request-id"].startswith("req_")
    assert harmful.json()["request_id"] == harmful.headers["x-request-id"]
