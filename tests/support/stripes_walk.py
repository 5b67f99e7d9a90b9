"""Every place where a registered dataset kind has to be found; see ``stripes.py``."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from service.cli import main
from service.doctor.installation import check_data_root
from tests.repository.documents import datasets
from tests.support.service_helpers import Api
from workers.config.dataset import DatasetSpec
from workers.config.job import Plan
from workers.data.preparation.prepare import prepare
from workers.errors import UnknownName

pytest_plugins = ["tests.support.service_fixtures"]

SPEC: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
STRIPES = {"kind": "stripes", "path": "ten.stripes"}


@pytest.fixture
def stripes(api: Api) -> Path:
    path = api.settings.data_root / "ten.stripes"
    path.write_text("10")
    return path


def test_a_plan_names_it_and_errors_know_it() -> None:
    plan = Plan.model_validate({"dataset": STRIPES, "students": ["cnn_s"], "methods": ["ce"]})
    assert plan.dataset.model_dump(mode="json") == {**STRIPES, "repeats": None}
    with pytest.raises(ValidationError, match=r"'digits', .*'stripes'"):
        SPEC.validate_python({"kind": "strips"})
    with pytest.raises(UnknownName, match="field of StripesDataset 'repeat'"):
        SPEC.validate_python({**STRIPES, "repeat": 3})


def test_it_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "ten.stripes").write_text("10")
    train = prepare(SPEC.validate_python(STRIPES), "train", tmp_path, tmp_path / "work")
    assert (train.samples, train.picture_shape, train.class_names[9]) == (20, (8, 8, 1), "grey 9")
    assert np.unique(train.take(np.array([7]))).tolist() == [0, 7]


def test_the_api_examines_it(api: Api, stripes: Path) -> None:
    made = api.client.post("/v1/datasets", json={"name": "s", "spec": STRIPES})
    assert (made.status_code, made.json()["classes"], made.json()["samples"]) == (201, 10, {"train": 20, "test": 20})
    stripes.write_text("ten")
    refused = api.client.post("/v1/datasets", json={"name": "t", "spec": STRIPES})
    assert refused.json()["detail"] == "ten.stripes holds no number of classes"


def test_a_dry_run_knows_its_classes_and_the_size_of_its_pictures(api: Api, stripes: Path) -> None:
    def dry_run(**changes: object) -> tuple[int, str]:
        answer = api.client.post("/v1/jobs?dry_run=true", json=api.job_body(dataset=STRIPES, **changes))
        return answer.status_code, answer.text

    assert dry_run()[0] == 200
    status, text = dry_run(students=["torchvision/densenet121"])
    assert status == 422
    assert "these have 8" in text
    stripes.write_text("9")
    assert "the dataset has 9" in dry_run()[1]


def test_the_openapi_document_describes_it(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    assert "repeats" in document["components"]["schemas"]["StripesDataset"]["properties"]
    assert "StripesDataset" in json.dumps(document["components"]["schemas"]["DatasetRequest"])


def test_the_doctor_finds_it_and_advises_it(api: Api, stripes: Path) -> None:
    assert check_data_root(api.settings).found.endswith("has stripes ten.stripes")
    stripes.unlink()
    assert check_data_root(api.settings).advice.endswith("files of stripes")


def test_the_command_line_explains_and_registers_it(
    api: Api, stripes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["datasets", "add", "--help"]) == 0
    told = capsys.readouterr().out
    for text in (", stripes.", "stripes: one file *.stripes", "--repeats", "Of stripes: pictures of each class."):
        assert text in told
    words = ["datasets", "add", "s", "stripes", "--path", "ten.stripes", "--repeats", "3"]
    assert main(["--url", api.url, *words]) == 0
    [made] = api.client.get("/v1/datasets").json()["data"]
    assert (made["spec"], made["samples"]["train"]) == ({**STRIPES, "repeats": 3}, 30)


def test_the_documents_list_it() -> None:
    assert datasets().endswith(
        "| `stripes` | `path`, `repeats` (two) | one file `*.stripes`: the number of classes |\n"
    )
