"""Uploaded weights of students over HTTP: kept by their content, named by a job, needed, deleted, refused."""

import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save, save_file

from service.client.client import Client
from service.db.student_file_record import StudentFileRecord
from service.db.transitions import existing
from service.operations.data_dir import unknown_files
from service.settings import MiB
from tests.service.api.test_routes import problem
from tests.support.exported_programs import Tiny, exported
from tests.support.service_helpers import Api, make_settings, running_api
from workers.students.build import build_student
from workers.students.program import METADATA, read_program

pytest_plugins = ["tests.support.service_fixtures"]


def weights(classes: int = 10, **changes: torch.Tensor | None) -> bytes:
    """Content of a file of a small student's weights, which are the same each time."""
    torch.manual_seed(7)
    state = build_student("cnn_s", classes, 1).state_dict() | {
        name.replace("__", "."): x for name, x in changes.items()
    }
    return save({name: x for name, x in state.items() if x is not None})


def upload(api: Api, content: bytes, **fields: str) -> httpx2.Response:
    return api.client.post("/v1/student-files", files={"file": ("w.safetensors", content)}, data=fields)


def kept(api: Api) -> list[str]:
    return sorted(path.name for path in api.settings.student_files_dir.iterdir())


def with_upload(id: str, name: str = "cnn_s") -> dict[str, Any]:
    return {"students": [{"name": name, "init": {"upload": id}}]}


def test_uploaded_weights_are_kept_once_and_shown(api: Api) -> None:
    content = weights()
    made = upload(api, content, name="mine")
    assert made.status_code == 201, made.text
    file, sha256 = made.json(), hashlib.sha256(content).hexdigest()
    assert made.headers["location"] == f"/v1/student-files/{file['id']}"
    assert (file["sha256"], file["size_bytes"], file["name"]) == (sha256, len(content), "mine")
    assert (file["parameters"], file["dtypes"]) == (24_285, ["F32", "I64"])
    again = upload(api, content, name="other")
    assert (again.status_code, again.json()) == (200, file)
    assert kept(api) == [f"{sha256}.safetensors"]
    assert api.client.get("/v1/student-files", params={"name": "MIN"}).json()["data"] == [file]
    assert api.client.get(f"/v1/student-files/{file['id']}").json() == file
    assert unknown_files(api.settings, api.context.database) is None


def test_job_begins_with_an_upload_which_stays_while_the_job_needs_it(api: Api) -> None:
    id = upload(api, weights(classes=7)).json()["id"]
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(**with_upload(id))).json()
    [note] = [note for note in preview["warnings"] if id in note]
    assert "the classifier head has another size and begins at random: classifier.bias [7] -> [10]" in note
    job = api.post_job(**with_upload(id))
    sha256 = hashlib.sha256(weights(classes=7)).hexdigest()
    assert job["plan"]["students"] == [{"name": "cnn_s", "init": {"upload": id, "sha256": sha256}}]
    refused = api.client.delete(f"/v1/student-files/{id}")
    assert f"student file {id} is used by job {job['id']}" in problem(refused, 409, "conflict")["detail"]
    look = api.client.get(f"/v1/student-files/{id}/deletion").json()
    assert (look["frees_bytes"], job["id"] in look["refused"]) == (0, True)
    api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert api.client.get(f"/v1/student-files/{id}/deletion").json()["frees_bytes"] == len(weights(classes=7))
    assert api.client.delete(f"/v1/student-files/{id}").status_code == 204
    assert kept(api) == []
    gone = api.client.post("/v1/jobs", json=api.job_body(**with_upload(id)))
    assert "POST /v1/student-files" in problem(gone, 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier__weight": None}, "'classifier.weight' missing"),
        ({"extra": torch.zeros(1)}, "'extra' unexpected"),
        ({"features__1__weight": torch.ones(7)}, "'features.1.weight' is [7], the student's [16]"),
        ({"features__1__running_mean": torch.ones(1)}, "'features.1.running_mean' is [1], the student's [16]"),
        ({"features__1__weight": torch.tensor(1.0)}, "'features.1.weight' is [], the student's [16]"),
        ({"features__1__weight": torch.ones(16, dtype=torch.int64)}, "'features.1.weight' is I64, the student's F32"),
    ],
)
def test_job_refuses_an_upload_that_is_not_the_students_by_the_names_of_its_tensors(
    api: Api, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    id = upload(api, weights(**changes)).json()["id"]
    refused = api.client.post("/v1/jobs", json=api.job_body(**with_upload(id)))
    detail = problem(refused, 422, "invalid-job")["detail"]
    assert detail.startswith(
        f"student 'cnn_s' cannot begin with the upload {id}: these weights are not of this student"
    )
    assert message in detail


def test_job_says_that_weights_of_another_dtype_are_converted_or_refuses_them(api: Api, tmp_path: Path) -> None:
    """Those of a program, too; before anything is trained."""
    half = upload(api, weights(features__1__weight=torch.ones(16).half())).json()["id"]
    dry = {"dry_run": True}
    preview = api.client.post("/v1/jobs", params=dry, json=api.job_body(**with_upload(half))).json()
    assert any("1 of them are converted, F16 to F32" in note for note in preview["warnings"])
    program = upload(api, exported(Tiny(), tmp_path / "p").read_bytes()).json()["student"]
    state = {name: x.clone() for name, x in Tiny().state_dict().items()}
    for changes, status, message in (
        ({"head.weight": state["head.weight"].bfloat16()}, 200, "1 of them are converted, BF16 to F32"),
        ({"head.weight": state["head.weight"].long()}, 422, "'head.weight' is I64, the student's F32"),
        ({"scale": torch.ones(1)}, 422, "'scale' is [1], the student's []"),
    ):
        id = upload(api, save(state | changes)).json()["id"]
        answer = api.client.post("/v1/jobs", params=dry, json=api.job_body(**with_upload(id, program)))
        assert (answer.status_code, message in answer.text) == (status, True), answer.text


def test_job_says_that_a_program_was_exported_for_evaluation(api: Api, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.0), torch.nn.Linear(64, 10)).eval()
    student = upload(api, exported(network, tmp_path / "p").read_bytes()).json()["student"]
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=api.job_body(students=[student])).json()
    assert any("was exported for evaluation, in which stochastic depth" in note for note in preview["warnings"])


def test_uploads_that_are_no_weights_are_refused_and_leave_nothing(api: Api, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    nan = weights(classifier__bias=torch.full((10,), float("nan")))
    for content, message in (
        ((tmp_path / "w.pth").read_bytes(), "the archive holds 0 programs of torch.export"),
        (b"not weights at all", "no safetensors file"),
        (save({"w": torch.zeros(3)}, {METADATA: "{}"}), "metadata has 'retort_program', which marks programs"),
        (nan, "tensor 'classifier.bias' has values that are not finite"),
        (weights()[:-1], "cut off or damaged"),
    ):
        assert message in problem(upload(api, content), 422, "invalid-student-file")["detail"]
    two = api.client.post("/v1/student-files", files={"file": ("a", weights()), "data": ("b", b"x")})
    assert "is of teachers" in problem(two, 422, "invalid-request")["detail"]
    assert kept(api) == []


def test_program_is_a_student_of_jobs_which_need_it(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its safe form is kept, in place of the archive."""
    content = exported(Tiny(), tmp_path / "p").read_bytes()
    made = upload(api, content, name="tiny")
    assert made.status_code == 201, made.text
    file = made.json()
    assert (file["kind"], file["student"]) == ("program", f"uploaded/{file['id']}")
    assert (file["shape"], file["classes"], file["parameters"]) == ([1, 8, 8], 10, 197)
    assert kept(api) == [f"{file['sha256']}.safetensors"]
    assert read_program(api.settings.student_file_path(file["sha256"])).classes == 10
    assert upload(api, content).json() == file
    # As on a machine without torch: the trial of the first has shown that it is made.
    monkeypatch.setattr("service.api.routes.student_files.can_check", lambda: False)
    job = api.post_job(students=[file["student"]])
    assert job["plan"]["students"] == [{"name": file["student"], "program": file["sha256"]}]
    assert f"used by job {job['id']}" in api.client.delete(f"/v1/student-files/{file['id']}").text
    api.client.post(f"/v1/jobs/{job['id']}/cancel")
    weights_id = upload(api, weights()).json()["id"]
    other = upload(api, exported(Tiny(classes=7), tmp_path / "q").read_bytes()).json()["student"]
    for students, message in (
        ([f"uploaded/{weights_id}"], "is of the kind weights, not program"),
        ([{"name": "cnn_s", "init": {"upload": file["id"]}}], "is of the kind program, not weights"),
        (["uploaded/stf_00000000000000000000000000"], "upload it with POST /v1/student-files"),
        (["uploaded/mine"], "unknown student 'uploaded/mine'"),
        ([other], "gives 7 logits, and there are 10 classes"),
    ):
        refused = api.client.post("/v1/jobs", json=api.job_body(students=students))
        assert refused.status_code == 422, refused.text
        assert message in refused.text
    assert api.client.delete(f"/v1/student-files/{file['id']}").status_code == 204
    evaluated = exported(Tiny().eval(), tmp_path / "e").read_bytes()
    assert "call model.train() first" in problem(upload(api, evaluated), 422, "invalid-student-file")["detail"]
    assert len(kept(api)) == 2


def test_uploads_have_a_limit_of_their_own(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, student_file_max_bytes=MiB // 2, teacher_max_bytes=8 * MiB)) as api:
        assert upload(api, weights()).status_code == 201
        for size_bytes, said in ((MiB, "the file has more than the"), (4 * MiB, "bytes, a student's file may have")):
            detail = problem(upload(api, b"\0" * size_bytes), 413, "too-large")["detail"]
            assert f"{said} {MiB // 2}" in detail
            assert "(RETORT_STUDENT_FILE_MAX_BYTES): raise it, or send what holds the student alone" in detail
        no_upload = problem(api.client.post("/v1/student-files", content=b"x"), 400, "malformed-body")["detail"]
        assert "`curl -F file=@student.safetensors` makes one" in no_upload


def test_client_uploads_lists_and_deletes_files_of_students(api: Api, tmp_path: Path) -> None:
    save_file(build_student("cnn_s", 10, 1).state_dict(), tmp_path / "begun.safetensors")
    with Client(api.url) as client:
        file = client.upload_student_file(tmp_path / "begun.safetensors")
        assert (file["name"], [each["id"] for each in client.student_files(name="beg")]) == ("begun", [file["id"]])
        assert client.student_file(file["id"]) == file
        assert client.preview_deletion("student-files", file["id"])["frees_bytes"] == file["size_bytes"]
        client.delete_student_file(file["id"])
        assert list(client.student_files()) == []


def test_same_bytes_are_not_of_two_kinds(api: Api) -> None:
    id = upload(api, weights()).json()["id"]
    with api.context.database.write() as session:
        existing(session, StudentFileRecord, id).kind = "program"
    refused = problem(upload(api, weights()), 409, "conflict")["detail"]
    assert f"the same bytes are student file {id}, of the kind program and not weights" in refused
