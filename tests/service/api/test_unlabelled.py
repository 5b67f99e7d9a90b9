"""Data sets without labels over HTTP: registration, dry run, refusals by name, pictures."""

from pathlib import Path

import numpy as np
import pytest

from service.db.models import JobRecord
from tests.support.service_helpers import Api
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.prepare import prepare

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.fixture(scope="module")
def unlabelled(shared_api: Api) -> dict[str, object]:
    """A file of pictures without any label, of which some splits have been decoded."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    root = shared_api.settings.data_root
    np.savez(root / "plain.npz", train_images=images, test_images=images[:10])
    np.savez(root / "few.npz", train_images=images, train_labels=np.where(np.arange(40) < 10, np.arange(40), -1))
    return {"kind": "npz", "path": "plain.npz"}


def preview(api: Api, dataset: object, **changes: object) -> dict[str, object]:
    answer = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(dataset=dataset, **changes))
    assert answer.status_code == 200, answer.text
    document: dict[str, object] = answer.json()
    return document


def test_dry_run_without_labels_says_what_tells_the_classes_and_what_is_left_out(
    shared_api: Api, unlabelled: dict[str, object]
) -> None:
    shown = preview(shared_api, unlabelled, methods=["kd"])
    assert shown["labels"] == {
        "labelled": {"train": 0, "test": 0},
        "classes": 10,
        "class_names": [str(label) for label in range(10)],
        "named_by": "teacher",
    }
    said = " ".join(map(str, shown["warnings"]))
    assert "the cross-entropy of 'kd' is left out" in said
    assert "no picture of the test split has a label" in said
    assert "`class_names`" in said
    names = list("abcdefghij")
    named = preview(shared_api, {**unlabelled, "class_names": names}, methods=["kd"])
    assert (named["labels"]["class_names"], named["labels"]["named_by"]) == (names, "dataset")


def test_post_without_labels_refuses_methods_that_need_them_by_name(
    shared_api: Api, unlabelled: dict[str, object]
) -> None:
    body = shared_api.job_body(dataset=unlabelled, methods=["ce", "kd", "rld"])
    for params in ({}, {"dry_run": True}):
        answer = shared_api.client.post("/v1/jobs", params=params, json=body)
        assert answer.status_code == 422
        assert "method 'ce': it learns from labels alone; method 'rld': its distillation" in answer.json()["detail"]
        assert "kd" in answer.json()["detail"].partition("do without labels: ")[2]
    few = {"dataset": {"kind": "npz", "path": "few.npz"}, "test": None, "validation": {"holdout": 0.2}}
    answer = shared_api.client.post("/v1/jobs", json=shared_api.job_body(**few, methods=["dkd"]))
    assert "only 10 of 40 pictures of the training split has a label" in answer.json()["detail"]


def test_data_set_whose_classes_nothing_tells_has_none_and_asks_for_them_where_a_teacher_is_silent(
    shared_api: Api, unlabelled: dict[str, object]
) -> None:
    made = shared_api.client.post("/v1/datasets", json={"name": "plain", "spec": unlabelled}).json()
    assert (made["classes"], made["samples"]) == (None, {"train": 40, "test": 10})


def test_pictures_without_a_label_are_counted_and_listed(
    shared_api: Api, unlabelled: dict[str, object], tmp_path: Path
) -> None:
    few = NpzDataset(path="few.npz")
    opened = prepare(few, "train", shared_api.settings.data_root, shared_api.settings.datasets_dir)
    [split] = shared_api.client.get(f"/v1/datasets/{opened.fingerprint}/splits").json()["data"]
    assert (split["unlabelled"], sum(each["samples"] for each in split["classes"])) == (30, 10)
    rows = shared_api.client.get(f"/v1/datasets/{opened.fingerprint}/pictures", params={"class": -1, "limit": 2}).json()
    assert [(row["row"], row["label"], row["class_name"]) for row in rows["data"]] == [
        (10, None, None),
        (11, None, None),
    ]
    of_class = shared_api.client.get(f"/v1/datasets/{opened.fingerprint}/pictures", params={"class": 3}).json()
    assert [(row["row"], row["class_name"]) for row in of_class["data"]] == [(3, "3")]


def test_job_is_stored_with_the_pictures_that_a_holdout_of_few_labels_takes(
    shared_api: Api, unlabelled: dict[str, object]
) -> None:
    few = {**unlabelled, "path": "few.npz"}
    job = shared_api.post_job(dataset=few, methods=["kd"], test=None, validation={"holdout": 0.2, "stratified": False})
    assert shared_api.queries.get(JobRecord, job["id"]).samples == {"train": 40, "validation": 2}


def test_job_whose_drop_last_leaves_no_batch_is_refused_while_the_client_waits(
    shared_api: Api, unlabelled: dict[str, object]
) -> None:
    training = {"epochs": 1, "batch_size": 64, "drop_last": True}
    body = shared_api.job_body(dataset=unlabelled, methods=["kd"], training=training)
    refused = shared_api.client.post("/v1/jobs", json=body)
    assert refused.status_code == 422
    assert "40 rows are trained on, and batch_size is 64" in refused.json()["detail"]
