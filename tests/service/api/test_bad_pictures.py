"""Datasets with bad pictures, without splits, and as manifests over HTTP."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.service_helpers import Api
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation.prepare import prepare
from workers.errors import InvalidDataset

pytest_plugins = ["tests.support.service_fixtures"]


def make_classes(folder: Path, pictures: int = 3) -> Path:
    """folder/{cat,dog}/{0,1,2}.png of 4 x 4 pixels, without splits."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(pictures):
            Image.new("RGB", (4, 4), (label, number, 0)).save(folder / name / f"{number}.png")
    return folder


def register(api: Api, **spec: object) -> dict[str, object]:
    answer = api.client.post("/v1/datasets", json={"name": f"{spec}"[:200], "spec": spec})
    assert answer.status_code == 201, answer.text
    made: dict[str, object] = answer.json()
    return made


def test_bad_pictures_are_listed_page_after_page_once_a_job_has_decoded_them(shared_api: Api) -> None:
    client, data_root = shared_api.client, shared_api.settings.data_root
    folder = make_classes(data_root / "damaged")
    for number in range(2):
        (folder / f"cat/{number}.png").write_bytes(b"")
    made = register(shared_api, kind="folder", path="damaged", on_bad_picture="skip")
    assert made["notes"] == [
        'there is no test split: a job on this dataset needs `"test": null` and `"validation": {"holdout": 0.1}`'
    ]
    path = f"/v1/datasets/{made['id']}"
    assert client.get(f"{path}/bad-pictures").json()["data"] == []
    spec = FolderDataset(path="damaged", on_bad_picture="skip")
    train = prepare(spec, "train", data_root, shared_api.settings.datasets_dir)
    assert client.get(path).json()["bad_pictures"] == {"train": 2}
    first = client.get(f"{path}/bad-pictures", params={"limit": "1"}).json()
    assert (first["has_more"], first["last_id"], first["data"][0]["sample_id"]) == (True, "0", "cat/0.png")
    [second] = client.get(f"{path}/bad-pictures", params={"after": "0", "split": "train"}).json()["data"]
    assert (second["number"], second["split"], second["left_out"]) == (1, "train", True)
    assert f"{second['sample_id']} {second['reason']}".startswith("cat/1.png cannot be read as a picture: it is empty")
    assert client.get(f"{path}/bad-pictures", params={"split": "test"}).json()["data"] == []
    rows = client.get(f"/v1/datasets/{train.fingerprint}/pictures").json()["data"]
    assert [row["sample_id"] for row in rows] == ["cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]


def test_bad_pictures_of_a_refused_dataset_are_listed(shared_api: Api) -> None:
    (make_classes(shared_api.settings.data_root / "refused") / "dog/2.png").write_bytes(b"")
    made = register(shared_api, kind="folder", path="refused")
    with pytest.raises(InvalidDataset, match=r"refused/dog/2\.png cannot be read"):
        prepare(FolderDataset(path="refused"), "train", shared_api.settings.data_root, shared_api.settings.datasets_dir)
    [bad] = shared_api.client.get(f"/v1/datasets/{made['id']}/bad-pictures").json()["data"]
    assert (bad["sample_id"], bad["left_out"]) == ("dog/2.png", False)


def test_a_dry_run_counts_manifests_and_says_what_was_understood(shared_api: Api) -> None:
    folder = make_classes(shared_api.settings.data_root / "listed")
    lines = [f"{path.parent.name}/{path.name},{5 + (path.parent.name == 'dog')}" for path in folder.rglob("*.png")]
    (shared_api.settings.data_root / "listed.csv").write_text("\n".join(("path,label", *lines)))
    spec = {"kind": "manifest", "path": "listed.csv", "root": "listed", "image_size": [8, 8]}
    body = shared_api.job_body(
        dataset=spec, test=None, validation={"holdout": 0.34}, teacher=shared_api.teacher(classes=2)
    )
    answer = shared_api.client.post("/v1/jobs?dry_run=true", json=body)
    assert answer.status_code == 200, answer.text
    assert any("the labels 5 to 6 have gaps" in warning for warning in answer.json()["warnings"])
