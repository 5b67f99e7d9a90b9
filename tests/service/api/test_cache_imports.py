"""Imports of logits over HTTP: matched by id, judged by the labels, refused with what to do."""

import io
import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from service.api import unprepared
from service.cli import main
from service.client.client import Client
from store import CacheReader
from tests.service.api.test_routes import problem
from tests.support.imported_logits import Values, npz
from tests.support.service_helpers import Api, finish, make_settings, running_api
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset, row_ids
from workers.run_files import CHECKPOINT

pytest_plugins = ["tests.support.service_fixtures"]
DIGITS = {"kind": "digits"}


@pytest.fixture(scope="module")
def train(shared_api: Api) -> Dataset:
    """The training split of the digits, decoded where the API looks for it."""
    return prepare(DigitsDataset(), "train", shared_api.settings.data_root, shared_api.settings.datasets_dir)


@pytest.fixture(scope="module")
def logits(train: Dataset) -> Values:
    """Logits that are nearly always right, float32 [N, 10]."""
    found = np.random.default_rng(0).normal(size=(train.samples, 10)).astype(np.float32)
    found[np.arange(train.samples), train.labels_N] += 4
    return found


def post(api: Api, content: bytes, **fields: str) -> httpx2.Response:
    data = {"dataset": json.dumps(DIGITS), **fields}
    return api.client.post("/v1/caches", files={"file": ("logits", content)}, data=data, timeout=120)


def test_an_import_is_matched_by_id_and_known_by_its_content(shared_api: Api, train: Dataset, logits: Values) -> None:
    order = np.random.default_rng(1).permutation(train.samples)
    ids = np.array(list(row_ids(train)))
    first = post(shared_api, npz(logits=logits[order], sample_ids=ids[order]), source="a notebook")
    assert (first.status_code, first.headers["location"]) == (201, f"/v1/caches/{first.json()['key']}"), first.text
    made = first.json()
    assert (made["state"], made["pinned"], made["spec"]["dtype"]) == ("complete", True, "float32")
    assert made["provenance"]["imported"]["source"] == "a notebook"
    assert made["accuracy"] > 0.9
    with CacheReader.from_key(shared_api.settings.caches_dir, made["key"]) as reader:
        np.testing.assert_array_equal(reader.logits(0), logits)
    # In another order, in another form, from elsewhere: the same logits.
    again = post(shared_api, npz(logits=logits[None]), rows="in_order", source="elsewhere")
    assert (again.status_code, again.json()["key"]) == (200, made["key"])
    assert shared_api.client.delete(f"/v1/caches/{made['key']}").status_code == 409


def test_what_is_wrong_with_an_import_is_said(shared_api: Api, logits: Values) -> None:
    shuffled = npz(logits=np.roll(logits, 7, axis=0))
    doubted = problem(post(shared_api, shuffled, rows="in_order"), 422, "contract-violation")
    assert "`accept_teacher`" in doubted["detail"]
    made = post(shared_api, shuffled, rows="in_order", accept_teacher="true").json()
    assert made["accuracy"] < 0.3
    assert made["provenance"]["imported"]["accepted"]
    assert "no sample ids" in problem(post(shared_api, npz(logits=logits)), 422, "invalid-logits")["detail"]
    assert "npy" in problem(post(shared_api, b"logits,1,2"), 422, "invalid-logits")["detail"]
    for fields, kind in (
        ({"split": "tset"}, "invalid-request"),
        ({"views": "{"}, "invalid-request"),
        ({"accept_teacher": "perhaps"}, "invalid-request"),
        ({"dataset": "none"}, "unknown-name"),
        ({"dataset": ""}, "invalid-request"),
        ({"datasets": "x"}, "unknown-name"),
    ):
        shown = problem(post(shared_api, b"", **fields), 422, kind)
        assert next(iter(fields)) in str(shown)


def test_rows_beyond_the_limit_are_refused_by_the_header(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, logits_max_bytes=1 << 20)) as api:
        # Compressed, a terabyte of zeros would come with little; the header alone says it.
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (1, 1 << 28, 1000)}
        )
        shown = problem(post(api, header.getvalue(), rows="in_order"), 422, "invalid-logits")
        assert "RETORT_LOGITS_MAX_BYTES" in shown["detail"]
        advice = " (RETORT_LOGITS_MAX_BYTES): raise it, or send float16, top-k, or fewer views"
        detail = problem(post(api, bytes(4 << 20)), 413, "too-large")["detail"]
        assert detail.endswith(f" bytes, a file of logits may have {1 << 20}{advice}")
        detail = problem(post(api, bytes(2 << 20)), 413, "too-large")["detail"]
        assert detail == f"the file has more than the {1 << 20} bytes allowed{advice}"
        no_upload = problem(api.client.post("/v1/caches", content=b"x"), 400, "malformed-body")["detail"]
        assert "`curl -F file=@logits.npz` makes one" in no_upload
        assert not list(api.settings.teachers_dir.glob(".incoming-*"))


def test_an_import_on_a_large_dataset_that_was_not_decoded_is_refused_before_its_file_unless_it_insists(
    tmp_path: Path, logits: Values, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unprepared, "_SAMPLES_MAX", 1000)
    with running_api(make_settings(tmp_path)) as api:
        # The fields come first: of this file, which is none, nothing is read.
        detail = problem(post(api, b"no logits", split="train"), 409, "conflict")["detail"]
        said = """run `retort datasets prepare '{"kind": "digits"}' --split train` where the service runs"""
        assert (said in detail, "1,442 pictures" in detail) == (True, True), detail
        detail = problem(post(api, npz(logits=logits), rows="in_order"), 409, "conflict")["detail"]
        assert "say `prepare` in the upload, before the file" in detail
        late = {"dataset": json.dumps(DIGITS), "split": "train", "file": b"no logits", "prepare": "true"}
        parts = [(name, (None, value)) for name, value in late.items()]
        detail = problem(api.client.post("/v1/caches", files=parts), 409, "conflict")["detail"]
        assert "before the file" in detail
        assert not (api.settings.datasets_dir / "sources").exists()
        small = post(api, npz(logits=logits[:200]), dataset=json.dumps({"kind": "digits", "train_per_class": 20}))
        assert "no sample ids" in problem(small, 422, "invalid-logits")["detail"]
        made = post(api, npz(logits=logits), split="train", rows="in_order", prepare="true")
        assert made.status_code == 201, made.text
        another = json.dumps({"kind": "digits", "train_per_class": 110})
        folders = ["--data-dir", str(api.settings.data_dir), "--data-root", str(api.settings.data_root)]
        assert main(["--json", "datasets", "prepare", another, "--split", "train", *folders]) == 0
        samples = json.loads(capsys.readouterr().out)["splits"]["train"]["samples"]
        fields = {"dataset": another, "split": "train", "rows": "in_order", "accept_teacher": "true"}
        answer = post(api, npz(logits=logits[:samples]), **fields)
        assert (samples > 1000, answer.status_code) == (True, 201), answer.text


def body_of(caches: dict[str, str], **changes: object) -> dict[str, Any]:
    plan = {"dataset": DIGITS, "views": {}, "students": ["cnn_s"], "methods": ["kd"], "training": {"epochs": 1}}
    return {**plan, "caches": caches, **changes}


def test_a_job_names_imported_caches_and_is_refused_where_they_do_not_fit(shared_api: Api, logits: Values) -> None:
    client = shared_api.client
    key = post(shared_api, npz(logits=logits), rows="in_order", source="a notebook").json()["key"]
    preview = client.post("/v1/jobs", params={"dry_run": True}, json=body_of({"train": key})).json()
    assert [(each["key"], each["rows"], each["rows_cached"]) for each in preview["cost"]["caches"]] == [
        (key, 1442, 1442)
    ]
    assert preview["cost"]["forwards"]["to_run"] == 0
    assert preview["teachers"][0]["name"] == "a notebook"
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 2}
    mixed = {"augmentation": {"recipe": "crop_flip", "mixup": {}}, "count": 1}
    of_mixed = post(shared_api, npz(logits=logits), rows="in_order", views=json.dumps(mixed)).json()["key"]
    settings, few = shared_api.settings, DigitsDataset(train_per_class=5)
    prepare(few, "train", settings.data_root, settings.datasets_dir)
    for changes, said in (
        ({"views": views}, '"views": {"augmentation":{"recipe":"none"}'),
        ({"cache": {"dtype": "float32"}}, "leave `cache` out"),
        ({"caches": {"test": key}}, "add its cache"),
        ({"caches": {"train": key, "test": key}}, "is of the train split"),
        ({"caches": {"train": "0" * 64}}, "is not there"),
        (
            {"caches": {"train": of_mixed}, "views": mixed, "validation": {"holdout": 0.1}},
            "leave `validation` out, or import logits of views that are not mixed",
        ),
        ({"dataset": few.model_dump(mode="json")}, "other pictures"),
    ):
        answer = client.post("/v1/jobs", json=body_of({"train": key}) | changes)
        assert said in problem(answer, 422, "invalid-job")["detail"]
    both = client.post("/v1/jobs", json=body_of({"train": key}, teacher="tch_x"))
    assert "leave one of them out" in problem(both, 422, "invalid-request")["detail"]
    job = client.post("/v1/jobs", json=body_of({"train": key})).json()
    assert (job["teacher"], job["teachers"][0]["caches"], job["caches"]) == ("", {"train": key}, {"train": key})
    assert client.get(f"/v1/caches/{key}").json()["use"]["forwards_run"] == 0
    client.delete(f"/v1/caches/{key}/pin")
    assert job["id"] in client.delete(f"/v1/caches/{key}").json()["detail"]
    added = client.post(f"/v1/jobs/{job['id']}/runs", json={"students": ["cnn_s"], "methods": ["ce"]})
    assert len(added.json()["plan"]["added"]) == 1, added.text
    client.post(f"/v1/jobs/{job['id']}/cancel")
    retried = client.post(f"/v1/jobs/{job['id']}/retry")
    assert retried.status_code == 201, retried.text
    client.post(f"/v1/jobs/{retried.json()['id']}/cancel")


def test_client_and_command_import_what_they_export(
    shared_api: Api, logits: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = post(shared_api, npz(logits=logits), rows="in_order").json()["key"]
    with Client(shared_api.url) as client:
        path = client.export_cache(key, tmp_path / "cache.parquet", format="parquet")
        assert client.import_cache(path, DIGITS)["key"] == key
    assert main(["--url", shared_api.url, "cache", "import", str(path), "--dataset", json.dumps(DIGITS)]) == 0
    assert capsys.readouterr().out.strip() == key


def test_a_run_on_imported_logits_is_extended_alone_or_in_a_combination(shared_api: Api, logits: Values) -> None:
    client = shared_api.client
    key = post(shared_api, npz(logits=logits), rows="in_order", source="a notebook").json()["key"]
    test = prepare(DigitsDataset(), "test", shared_api.settings.data_root, shared_api.settings.datasets_dir)
    of_test = npz(logits=9 * np.eye(10, dtype=np.float32)[np.asarray(test.labels_N)] - 1)
    caches = {"train": key, "test": post(shared_api, of_test, rows="in_order", split="test").json()["key"]}
    imported, teacher = {"caches": caches, "weight": 3.0}, {"id": shared_api.teacher(), "weight": 1.0}
    training = {"epochs": 1, "schedule": {"kind": "step", "milestones": []}, "keep_checkpoint": True}
    plan = {"dataset": DIGITS, "students": ["cnn_s"], "methods": ["kd"], "training": training}
    for given in (
        {"caches": {"train": key}, "cache": {}},
        {"teachers": [imported, teacher]},
        {"teachers": [teacher, imported]},
    ):
        posted = client.post("/v1/jobs", json={**plan, "cache": {"dtype": "float32"}, **given})
        assert posted.status_code == 201, posted.text
        job = posted.json()
        finish(shared_api.records, job["id"])
        [run] = shared_api.records.runs(job["id"])
        with shared_api.context.database.write() as session:
            session.get_one(type(run), run.id).epoch = run.epochs
        folder = shared_api.settings.jobs_dir / job["id"] / run.id / "a1"
        folder.mkdir(parents=True)
        (folder / CHECKPOINT).touch()
        answer = client.post(f"/v1/runs/{run.id}/extend", json={"epochs": 2})
        assert answer.status_code == 201, answer.text
        client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
        assert answer.json()["teachers"] == job["teachers"]
        assert answer.json()["caches"] == job["caches"]
