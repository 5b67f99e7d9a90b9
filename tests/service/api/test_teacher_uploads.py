"""Uploads of teachers with weights beside the file, and with what a client states of the output and its classes."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import update

from service.api.routes import teachers
from service.cli import main
from service.db.models import JobRecord, TeacherRecord
from service.engine.scheduler import job_spec
from tests.service.api.test_routes import problem
from tests.support.service_helpers import PREPROCESSING, Api, onnx_bytes
from tests.workers.onnx.test_packing import tarred, zipped
from workers.onnx import versions
from workers.onnx.checks.large_file import find_layout
from workers.onnx.uploads.packing import pack

pytest_plugins = ["tests.support.service_fixtures"]
GRAY = PREPROCESSING.model_dump_json()
REVERSED = json.dumps(list("9876543210"))


def in_two_files() -> tuple[bytes, bytes]:
    """The linear teacher with its weights beside it, as ``w.data``."""
    model = onnx.load_from_string(onnx_bytes())
    [weight] = model.graph.initializer
    data = numpy_helper.to_array(weight).tobytes()
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.data", "offset": "0", "length": str(len(data))}.items():
        weight.external_data.add(key=key, value=value)
    return model.SerializeToString(), data


def takes_bytes() -> bytes:
    """A teacher with its preprocessing in the graph, and a scalar input beside the pictures."""
    weight = numpy_helper.from_array(np.eye(192, 10, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("Mul", ["z", "keep_prob"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("keep_prob", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 8, 8, 3]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(nodes, "bytes", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(autouse=True)
def _without_smoke_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an API whose machine has no ONNX Runtime, but for the test that is about the run."""
    if request.function is not test_byte_input_and_scalar_inputs:
        monkeypatch.setattr(versions, "is_runtime_installed", lambda: False)


def kept(api: Api) -> list[str]:
    return sorted(path.name for path in api.settings.teachers_dir.iterdir())


def test_weights_beside_the_file_are_put_into_it(api: Api) -> None:
    """As two parts, and in either archive: one teacher, one file."""
    model, data = in_two_files()
    parts = {"file": ("m.onnx", model), "data": ("folder/w.data", data)}
    made = api.client.post("/v1/teachers", files=parts, data={"preprocessing": GRAY})
    assert made.status_code == 201, made.text
    teacher = made.json()
    assert kept(api) == [f"{teacher['sha256']}.onnx"]
    path = api.settings.teacher_path(teacher["sha256"])
    assert teacher["size_bytes"] == path.stat().st_size > len(data)
    assert (numpy_helper.to_array(onnx.load(path).graph.initializer[0]) == np.zeros((64, 10))).all()
    for archive in (zipped({"m.onnx": model, "w.data": data}), tarred({"a/m.onnx": model, "a/w.data": data})):
        again = api.upload(archive)
        assert (again.status_code, again.json()["id"]) == (200, teacher["id"])
    assert kept(api) == [f"{teacher['sha256']}.onnx"]


def test_large_teacher_is_kept_as_one_file_that_is_deleted_with_its_bytes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bound of 2 GiB lowered to 1,000 bytes; what is kept, sent again, is the same teacher."""
    monkeypatch.setattr(teachers, "pack", functools.partial(pack, single_max=1000))
    model, data = in_two_files()
    parts = {"file": ("m.onnx", model), "data": ("w.data", data)}
    made = api.client.post("/v1/teachers", files=parts, data={"preprocessing": GRAY})
    assert made.status_code == 201, made.text
    teacher = made.json()
    path = api.settings.teacher_path(teacher["sha256"])
    assert kept(api) == [path.name]
    assert find_layout(path) is not None
    assert teacher["size_bytes"] == path.stat().st_size
    assert (teacher["classes"], teacher["sha256"]) == (10, hashlib.sha256(path.read_bytes()).hexdigest())
    again = api.upload(path.read_bytes())
    assert (again.status_code, again.json()["id"]) == (200, teacher["id"])
    other = api.client.post("/v1/teachers", files=parts, data={"preprocessing": GRAY, "output_kind": "logits"}).json()
    for id, frees_bytes in ((other["id"], 0), (teacher["id"], teacher["size_bytes"])):
        assert kept(api) == [path.name]
        assert api.client.get(f"/v1/teachers/{id}/deletion").json()["frees_bytes"] == frees_bytes
        assert api.client.delete(f"/v1/teachers/{id}").status_code == 204
    assert kept(api) == []


def test_weights_that_do_not_fit_are_refused_and_leave_nothing(api: Api) -> None:
    model, data = in_two_files()
    for name, content, words in (
        ("other.data", data, "lie in w.data, the upload's `data` is 'other.data'"),
        ("w.data", data[:-1], "has 2559 bytes: the two files are of different exports"),
    ):
        parts = {"data": (name, content), "file": ("m.onnx", model)}
        answer = api.client.post("/v1/teachers", files=parts, data={"preprocessing": GRAY})
        assert words in problem(answer, 422, "invalid-teacher")["detail"]
    assert (
        "Send both files, as the parts `file` and `data`"
        in problem(api.upload(model), 422, "invalid-teacher")["detail"]
    )
    assert kept(api) == []


def test_teacher_shows_what_was_stated_of_it(api: Api) -> None:
    """Which makes it another teacher of the same file."""
    plain = api.upload().json()
    assert (plain["output_kind"], plain["class_names"], plain["class_map"]) == (None, None, {})
    fields = {
        "output_kind": "sigmoid",
        "class_names": "zero\none\n" + "\n".join("23456789"),
        "class_map": '{"0": "zero"}',
    }
    stated = api.upload(**fields).json()
    assert stated["id"] != plain["id"]
    assert stated["sha256"] == plain["sha256"]
    assert stated["output_kind"] == "sigmoid"
    assert stated["class_names"] == ["zero", "one", *"23456789"]
    assert stated["class_map"] == {"0": "zero"}
    assert api.upload(**fields).json() == stated
    by_number = json.dumps({str(k): str(k) for k in range(10)})
    assert api.upload(class_names=by_number).json()["class_names"] == list("0123456789")


@pytest.mark.parametrize(
    ("fields", "slug", "words"),
    [
        ({"output_kind": "logit"}, "invalid-request", "'output_kind' cannot be used"),
        ({"class_names": '["a", "b"]'}, "invalid-teacher", "class_names has 2 names, the teacher's output has 10"),
        ({"class_names": '{"1": "a"}'}, "invalid-request", "must be the columns 0 to 0"),
        ({"class_map": "["}, "invalid-request", "the field 'class_map' is no JSON"),
        ({"class_map": '{"a": 1, "a": 2}'}, "invalid-request", "2 members 'a'"),
        ({"class_map": "[" * 1000}, "invalid-request", "1000 deep"),
        ({"input_values": '{"p": 1}'}, "invalid-teacher", "states a value for p, the graph has x"),
        ({"input_values": '{"p": "x"}'}, "invalid-request", "'input_values' cannot be used"),
    ],
)
def test_wrong_statements_are_refused(shared_api: Api, fields: dict[str, str], slug: str, words: str) -> None:
    assert words in problem(shared_api.upload(**fields), 422, slug)["detail"]


def test_byte_input_and_scalar_inputs(api: Api) -> None:
    """The smoke run gives it bytes and the value; a scaling is refused."""
    layout = '{"layout": "nhwc"%s}'
    given = {"preprocessing": layout % "", "input_values": '{"keep_prob": 0.5}'}
    made = api.upload(takes_bytes(), **given)
    assert made.status_code == 201, made.text
    teacher = made.json()
    assert (teacher["preprocessing"]["scale"], teacher["preprocessing"]["mean"]) == (1.0, [0.0] * 3)
    assert (teacher["smoke_run"], teacher["input_values"]) == ("passed", {"keep_prob": 0.5})
    assert [each["name"] for each in teacher["inputs"]] == ["x", "keep_prob"]
    scaled = {**given, "preprocessing": layout % ', "scale": 0.5'}
    assert (
        "is uint8: its scaling is in the graph"
        in problem(api.upload(takes_bytes(), **scaled), 422, "invalid-teacher")["detail"]
    )
    without = problem(api.upload(takes_bytes(), preprocessing=layout % ""), 422, "invalid-teacher")["detail"]
    assert 'state its value in `input_values`, {"keep_prob": 1.0}' in without


def test_dry_run_shows_the_order_of_the_classes(api: Api) -> None:
    teacher = api.upload(class_names=REVERSED).json()["id"]
    body = api.job_body(teacher=teacher)
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=body)
    assert preview.status_code == 200, preview.text
    classes = preview.json()["classes"]
    assert (classes["matched_by"], classes["count"]) == ("name", 10)
    assert classes["order"][0] == {"dataset": "0", "column": 9, "teacher": "0"}
    assert "in another order: '0' is column 9 ('0')" in classes["note"]
    by_position = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body()).json()["classes"]
    assert (by_position["matched_by"], by_position["note"]) == ("position", "")
    assert by_position["order"][9] == {"dataset": "9", "column": 9, "teacher": None}


def test_dry_run_reads_the_names_in_a_file_that_an_earlier_version_has_taken(api: Api) -> None:
    model = onnx.load_from_string(onnx_bytes())
    helper.set_model_props(model, {"class_names": REVERSED})
    teacher = api.upload(model.SerializeToString()).json()
    assert teacher["file_class_names"] == list("9876543210")
    with api.context.database.write() as session:
        session.execute(update(TeacherRecord).values(file_class_names=None))
    answer = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(teacher=teacher["id"]))
    assert answer.json()["classes"]["matched_by"] == "name"
    assert answer.json()["classes"]["order"][0] == {"dataset": "0", "column": 9, "teacher": "0"}


def test_job_takes_some_classes_of_a_larger_teacher_and_no_superset(api: Api) -> None:
    thousand = [f"class {k}" for k in range(990)] + list("0123456789")
    larger = api.upload(onnx_bytes(1000), class_names=json.dumps(thousand)).json()["id"]
    classes = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(teacher=larger)).json()["classes"]
    assert [each["column"] for each in classes["order"]] == list(range(990, 1000))
    job = api.post_job(teacher=larger)
    for_engine = job_spec(api.queries.get(JobRecord, job["id"]), api.settings).teacher
    assert for_engine.class_names == tuple(thousand)
    fewer = api.upload(onnx_bytes(9), class_names=json.dumps(list("012345678"))).json()["id"]
    answer = api.client.post("/v1/jobs", json=api.job_body(teacher=fewer))
    assert "has 1 classes that the teacher lacks: '9'" in problem(answer, 422, "contract-violation")["detail"]
    nameless = api.upload(onnx_bytes(1000)).json()["id"]
    answer = api.client.post("/v1/jobs", json=api.job_body(teacher=nameless))
    assert "uploaded with its `class_names`" in problem(answer, 422, "contract-violation")["detail"]


def test_command_uploads_with_every_statement(api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = in_two_files()
    (tmp_path / "m.onnx").write_bytes(model)
    (tmp_path / "w.data").write_bytes(data)
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    command = ["--url", api.url, "--json", "teachers", "upload", str(tmp_path / "m.onnx"), "--preprocessing", GRAY]
    command += ["--data", str(tmp_path / "w.data"), "--output-kind", "logits"]
    command += ["--class-names", str(tmp_path / "names.txt"), "--class-map", '{"ten": 1}']
    assert main(command) == 0
    teacher = json.loads(capsys.readouterr().out)
    assert (teacher["output_kind"], teacher["class_names"], teacher["class_map"]) == (
        "logits",
        list("0123456789"),
        {"ten": 1},
    )
    (tmp_path / "bytes.onnx").write_bytes(takes_bytes())
    command = ["--url", api.url, "--json", "teachers", "upload", str(tmp_path / "bytes.onnx")]
    command += ["--preprocessing", '{"layout": "nhwc"}', "--input", "keep_prob=0.5"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["input_values"] == {"keep_prob": 0.5}
