"""Datasets in the forms in which people have them, registered over HTTP and by the command line."""

import numpy as np
import pytest

from service.cli import main
from tests.support.dataset_forms import FORMS, LABELS
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]

LABEL = {"hub": "label", "shards": "cls"}


def test_every_form_is_registered_over_http_and_named_by_a_job(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    root = api.settings.data_root
    for form, make in FORMS.items():
        spec = make(root)
        made = api.client.post("/v1/datasets", json={"name": form, "spec": spec})
        assert made.status_code == 201, made.text
        assert (made.json()["classes"], made.json()["samples"]) == (4, {"train": 12, "test": 8})
        refused = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(dataset=form))
        assert "the dataset has 4" in refused.json()["detail"]
    for words in (["hub", "parquet", "--path", "hub/data/*.parquet"], ["shards", "webdataset", "--path", "shards"]):
        assert (
            main(["--url", api.url, "datasets", "add", f"{words[0]} again", *words[1:], "--label", LABEL[words[0]]])
            == 0
        )
        assert capsys.readouterr().out.startswith("ds_")


def test_labels_that_were_numbered_are_said_wherever_a_dataset_is_examined(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.tile(np.arange(10), 2) * 5
    arrays = {f"{split}_images": np.zeros((20, 8, 8), np.uint8) for split in ("train", "test")}
    np.savez(api.settings.data_root / "fives.npz", train_labels=labels, test_labels=labels, **arrays)
    spec = {"kind": "npz", "path": "fives.npz"}
    said = "not 0..9, and were numbered in ascending order: 0 is class 0, 5 is class 1"
    made = api.client.post("/v1/datasets", json={"name": "fives", "spec": spec}).json()
    assert said in made["notes"][0]
    assert api.client.get(f"/v1/datasets/{made['id']}").json()["notes"] is None
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(dataset=spec)).json()
    assert any(said in warning for warning in preview["warnings"])
    assert main(["--url", api.url, "datasets", "add", "again", "npz", "--path", "fives.npz"]) == 0
    told = capsys.readouterr()
    assert (told.out.startswith("ds_"), said in " ".join(told.err.split())) == (True, True)


def test_columns_that_cannot_be_told_are_asked_for_over_http(api: Api) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": [b""] * 12, "fine": LABELS["train"], "coarse": LABELS["train"] // 2}
    pq.write_table(pa.table(columns), api.settings.data_root / "two.parquet")
    spec = {"kind": "parquet", "path": "two.parquet"}
    refused = api.client.post("/v1/datasets", json={"name": "two", "spec": spec})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:retort:problem:invalid-dataset")
    assert refused.json()["detail"].startswith("two.parquet has several columns that may hold labels")
    assert "set 'label' to one of its columns, image (binary), fine (int64), coarse (int64)" in refused.json()["detail"]
    assert api.client.post("/v1/datasets", json={"name": "two", "spec": spec | {"label": "fine"}}).status_code == 201


def test_what_newcomers_post_is_refused_with_the_next_step(api: Api) -> None:
    """Each in one sentence that says what to post, or how to save the files."""
    root = api.settings.data_root
    (root / "pictures.zip").write_bytes(b"PK")
    (root / "list.txt").write_text("a.jpg 0")
    np.savez(root / "other.npz", data=np.zeros((2, 8, 8), np.uint8), target=[0, 1])
    np.save(root / "x.npy", np.zeros((2, 8, 8), np.uint8))
    (root / "classes.csv").write_text("path,species\na.jpg,cat\n")
    for spec, words in (
        ({"path": "few"}, "the field 'kind' is missing, which says what kind of thing this is"),
        ({"kind": "folder", "path": f"{root}/few"}, "absolute, which is not allowed: give a path relative to the data"),
        ({"kind": "folder", "path": "pictures.zip"}, "is not a folder: unpack an archive (tar shards are of the kind"),
        ({"kind": "folder", "path": "few", "image_size": 224}, "image_size is [height, width] in pixels, such as [224"),
        ({"kind": "npz", "path": "other.npz"}, "it holds data, target. Save them by numpy.savez(path, train_images="),
        ({"kind": "npz", "path": "x.npy"}, "File is not a zip file; save them by numpy.savez(path, train_images=..."),
        ({"kind": "manifest", "path": "list.txt"}, "save the list as CSV with a header (path,label), or as JSON with"),
        (
            {"kind": "manifest", "path": "classes.csv"},
            "lacks the column 'label'; it has 'path', 'species': give path_c",
        ),
    ):
        refused = api.client.post("/v1/datasets", json={"name": "x", "spec": spec})
        assert refused.status_code == 422, spec
        assert words in refused.json()["detail"], refused.json()["detail"]
