"""Uploads of teachers: streamed, checked, kept once, and gone when they are bad."""

import asyncio
import fcntl
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import onnx
import pytest
from onnx import TensorProto, helper

from service.api.app import create_app
from service.api.bodies.multipart import sweep
from service.api.bodies.upload_sizes import BUFFER_BYTES, UPLOAD_EXTRA_BYTES, check_announced, teacher_limit
from service.api.dependencies import Context
from service.db.database import upgrade_to_head
from service.db.models import TeacherRecord
from service.db.states import State
from service.errors import DiskFloor, TooLarge
from tests.service.api.test_routes import problem
from tests.support.service_helpers import PREPROCESSING, Api, make_settings, onnx_bytes, running_api
from workers.config.teacher import TeacherSpec
from workers.onnx import versions
from workers.onnx.checks.check import FILE_MAX_BYTES
from workers.onnx.sessions import smoke_test

pytest_plugins = ["tests.support.service_fixtures"]

GRAY = PREPROCESSING.model_dump_json()


def left(api: Api) -> list[str]:
    """Names of what lies in the teachers' folder."""
    return sorted(path.name for path in api.settings.teachers_dir.iterdir())


def nothing_left(api: Api) -> bool:
    """Neither a file nor a row."""
    return left(api) == [] and api.client.get("/v1/teachers").json()["data"] == []


def test_an_upload_is_kept_under_its_digest_and_described(api: Api) -> None:
    """The same again is the same teacher; another preprocessing is another one with the same file."""
    made = api.upload(name="linear")
    assert made.status_code == 201
    teacher = made.json()
    assert made.headers["location"] == f"/v1/teachers/{teacher['id']}"
    assert (teacher["name"], teacher["output"], teacher["classes"]) == ("linear", "logits", 10)
    assert teacher["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 1, 8, 8]}]
    assert teacher["size_bytes"] == len(onnx_bytes())
    assert left(api) == [f"{teacher['sha256']}.onnx"]
    again = api.upload()
    assert (again.status_code, again.json()["id"]) == (200, teacher["id"])
    other = api.upload(preprocessing='{"channels": "gray", "mean": [0.1], "std": [0.2]}').json()
    marked = api.upload(preprocessing='\ufeff{"channels": "gray", "mean": [0.1], "std": [0.2]}')
    assert marked.json() == other, "a file of Windows"
    assert other["sha256"] == teacher["sha256"]
    assert other["id"] != teacher["id"]
    assert [row["id"] for row in api.client.get("/v1/teachers").json()["data"]] == [other["id"], teacher["id"]]
    assert api.client.delete(f"/v1/teachers/{teacher['id']}").status_code == 204
    assert left(api) == [f"{teacher['sha256']}.onnx"]
    assert api.client.delete(f"/v1/teachers/{other['id']}").status_code == 204
    assert nothing_left(api)


def test_a_preprocessing_of_timm_is_shown_as_what_it_became(api: Api) -> None:
    published = '{"input_size": [1, 8, 8], "crop_pct": 0.8, "interpolation": "bicubic", "mean": [0.1], "std": [0.2]}'
    shown = api.upload(preprocessing=published).json()
    assert shown["preprocessing"] == {
        "size": [8, 8],
        "resize": 10,
        "interpolation": "bicubic",
        "mean": [0.1],
        "std": [0.2],
        "channels": "gray",
        "layout": "nchw",
        "scale": 1 / 255,
    }
    same = api.upload(preprocessing=json.dumps(shown["preprocessing"]))
    assert (same.status_code, same.json()["id"]) == (200, shown["id"])


def test_a_teacher_is_tried_at_its_upload_where_that_is_possible(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it says so, until whoever tries it, an upload or a job, has left its marker; that goes with the teacher."""
    with monkeypatch.context() as patch:
        patch.setattr(versions, "is_runtime_installed", lambda: False)
        teacher = api.upload().json()
    assert teacher["smoke_run"] == "pending"
    path = f"/v1/teachers/{teacher['id']}"
    assert api.client.get(path).json()["smoke_run"] == "pending"
    assert api.upload().json()["smoke_run"] == "passed"
    assert api.client.get("/v1/teachers").json()["data"][0]["smoke_run"] == "passed"
    smoke_test.forget(api.settings.smoke_dir, spec := order_of(api, teacher["id"]))
    assert api.client.get(path).json()["smoke_run"] == "pending"
    smoke_test.remember(api.settings.smoke_dir, spec)
    assert api.client.get(path).json()["smoke_run"] == "passed"
    assert api.client.delete(path).status_code == 204
    assert list(api.settings.smoke_dir.iterdir()) == []


def order_of(api: Api, teacher_id: str) -> TeacherSpec:
    """The teacher as the engine has it, made from what a job stores."""
    row = api.queries.get(TeacherRecord, teacher_id)
    return TeacherSpec.model_validate(
        {
            "path": api.settings.teacher_path(row.sha256),
            "sha256": row.sha256,
            "output": row.output,
            "preprocessing": row.preprocessing,
        }
    )


def test_a_teacher_in_use_is_not_deleted(api: Api) -> None:
    """Until its job has ended."""
    job = api.post_job()
    path = f"/v1/teachers/{job['teacher']}"
    assert job["id"] in problem(api.client.delete(path), 409, "conflict")["detail"]
    api.records.move_job(job["id"], State.CANCELLED)
    assert api.client.delete(path).status_code == 204


def flat_input() -> bytes:
    """A graph whose input is a vector."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def external_data() -> bytes:
    """A graph whose weights lie in another file."""
    model = onnx.load_from_string(onnx_bytes())
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return model.SerializeToString()


def custom_operator() -> bytes:
    """A graph with an operator of another domain."""
    model = onnx.load_from_string(onnx_bytes())
    model.graph.node[0].domain = "evil"
    model.opset_import.append(helper.make_opsetid("evil", 1))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 not onnx", "ONNX"),
        (b"", "empty"),
        (onnx_bytes()[:-100], "ONNX"),
        (flat_input(), "rank"),
        (external_data(), "external"),
        (custom_operator(), "evil"),
    ],
    ids=["not onnx", "empty", "cut off", "wrong rank", "external data", "custom operator"],
)
def test_a_bad_file_is_refused_and_leaves_nothing(api: Api, content: bytes, words: str) -> None:
    """With one sentence that says what is wrong."""
    assert words in problem(api.upload(content), 422, "invalid-teacher")["detail"]
    assert nothing_left(api)


@pytest.mark.parametrize(
    ("fields", "slug", "words"),
    [
        ({"preprocessing": "{"}, "invalid-request", "JSON"),
        ({"preprocessing": '{"mean": [1]}'}, "invalid-request", "needs 3"),
        (
            {"preprocessing": f'{GRAY[:-1]}, "channels": "rgb", "channels": "gray"}}'},
            "invalid-request",
            "3 members 'chan",
        ),
        ({"preprocessing": '{"men": [1]}'}, "unknown-name", "Did you mean 'mean'"),
        ({"preprocessing": "{}"}, "invalid-teacher", "3 channels"),
        ({"preprocessing": "imagenet"}, "invalid-teacher", "3 channels"),
        ({"preprocessing": '"imagenet"'}, "invalid-teacher", "3 channels"),
        ({"preprocessing": '"imagnet"'}, "unknown-name", "Did you mean 'imagenet'"),
        ({"preprocessing": " imagenett"}, "unknown-name", "Did you mean 'imagenet'"),
        (
            {"preprocessing": '{"input_size": [1, 8, 8], "crop_mode": "border"}'},
            "invalid-request",
            "crop_mode 'border'",
        ),
        ({"preprocessing": '{"do_resize": true, "do_pad": true}'}, "invalid-request", "do_pad = True"),
        ({"preprocessing": GRAY, "output": "logit"}, "invalid-teacher", "logits"),
        ({"preprocessing": GRAY, "name": "a\nb"}, "invalid-request", "name"),
        ({"preprocessing": GRAY, "nmae": "a"}, "unknown-name", "Did you mean 'name'"),
    ],
)
def test_bad_fields_are_refused_and_leave_nothing(api: Api, fields: dict[str, str], slug: str, words: str) -> None:
    """The file beside them was good."""
    assert words in problem(api.upload(**fields), 422, slug)["detail"]
    assert nothing_left(api)


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=B"}
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/octet-stream"}, b"abc", 400),
        ({"Content-Type": "multipart/form-data"}, FILE + b"--B--\r\n", 400),
        ({"Content-Type": f"multipart/form-data; boundary={'B' * 300}"}, FILE + b"--B--\r\n", 400),
        (BOUNDARY, FILE, 400),
        (BOUNDARY, b"garbage", 400),
        (BOUNDARY, b"", 400),
        (BOUNDARY, b"--B--\r\n", 422),
        (BOUNDARY, b'--B\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--B--\r\n', 422),
        (BOUNDARY, FILE + FILE + b"--B--\r\n", 422),
        (BOUNDARY, b'--B\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xff\r\n--B--\r\n', 422),
        (BOUNDARY, b"--B\r\nX: " + b"x" * 10_000 + b"\r\n\r\nabc\r\n--B--\r\n", 400),
        (BOUNDARY, b'--B\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"x" * 70_000, 413),
    ],
)
def test_a_body_that_is_no_upload_is_refused(
    shared_api: Api, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Cut off, without a file, with two, with text that is no text, too long."""
    response = shared_api.client.post("/v1/teachers", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert nothing_left(shared_api)


def test_a_file_over_the_limit_is_refused_announced_or_not(tmp_path: Path) -> None:
    """Neither way leaves a byte, and the client hears why."""
    with running_api(make_settings(tmp_path, teacher_max_bytes=1 << 20)) as api:
        detail = problem(api.upload(b"x" * (4 << 20)), 413, "too-large")["detail"]
        assert "a teacher with its weights may have 1048576 (RETORT_TEACHER_MAX_BYTES): raise it, or convert" in detail

        def body() -> Iterator[bytes]:
            yield FILE.removesuffix(b"abc\r\n")
            for _ in range(64):
                yield b"x" * (1 << 16)

        response = api.client.post("/v1/teachers", content=body(), headers=BOUNDARY)
        assert "the file has more than the 1048576 bytes" in problem(response, 413, "too-large")["detail"]
        assert nothing_left(api)


def answer_to_announcement(api: Api, size_bytes: int) -> tuple[int, bytes]:
    """Status and body of the answer to an upload that announces so many bytes, and sends none."""
    target = urlsplit(api.url)
    with socket.create_connection((target.hostname, target.port), timeout=30) as connection:
        headers = {"Host": target.netloc, **BOUNDARY, "Content-Length": size_bytes}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join(["POST /v1/teachers HTTP/1.1", *lines, "", ""]).encode())
        response = HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, response.read()


def test_an_upload_beyond_the_setting_is_refused_by_its_announcement_with_the_next_step(tmp_path: Path) -> None:
    """Not a byte of it is read; the setting is the only limit, also beyond 2 GiB."""
    with running_api(make_settings(tmp_path, teacher_max_bytes=2 << 30)) as api:
        with pytest.raises(TooLarge, match=r"has 3221225472 bytes, a teacher .* 2147483648 .*BYTES\): raise it"):
            check_announced(3 << 30, teacher_limit(api.settings))
        check_announced(3 << 30, teacher_limit(make_settings(tmp_path, teacher_max_bytes=8 << 30)))
        check_announced((2 << 30) + UPLOAD_EXTRA_BYTES, teacher_limit(api.settings))
        status, body = answer_to_announcement(api, 3 << 30)
        assert status == 413
        assert b"convert its weights to float16" in body
        assert nothing_left(api)


def test_a_large_teacher_finds_the_disk_full_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing writes it once more before the upload is removed."""
    asked = []

    def check(_: Context, needed_bytes: int = 0) -> None:
        asked.append(needed_bytes)
        raise DiskFloor("full")

    monkeypatch.setattr(Context, "check_disk", check)
    with running_api(make_settings(tmp_path, teacher_max_bytes=8 << 30)) as api:
        for size_bytes in (FILE_MAX_BYTES, FILE_MAX_BYTES + 1):
            assert answer_to_announcement(api, size_bytes)[0] == 507
    assert asked == [FILE_MAX_BYTES, 2 * (FILE_MAX_BYTES + 1)]


PIECE_BYTES = (64 + 256) << 10  # uvicorn hands on what it holds and one more read of asyncio's


@pytest.mark.parametrize("parsed", [BUFFER_BYTES, 0])
@pytest.mark.parametrize("piece", [1 << 16, PIECE_BYTES])
def test_a_file_breaks_its_own_limit_however_its_bytes_arrive(tmp_path: Path, parsed: int, piece: int) -> None:
    """Not the whole body's, though that counts bytes before the parser has seen them: here all of a buffer but one."""
    settings = make_settings(tmp_path, teacher_max_bytes=BUFFER_BYTES)
    settings.make_folders()
    upgrade_to_head(settings.database)
    head = FILE.removesuffix(b"abc\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield head + b"x" * max(0, parsed - len(head))
        yield b"x" * (BUFFER_BYTES - 1)
        for _ in range(4):
            yield b"x" * piece

    async def post() -> httpx2.Response:
        # What is yielded arrives as it is; over a socket it would be cut anew.
        transport = httpx2.ASGITransport(create_app(settings))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/teachers", content=body(), headers=BOUNDARY)

    detail = problem(asyncio.run(post()), 413, "too-large")["detail"]
    assert detail.startswith(f"the file has more than the {BUFFER_BYTES} bytes allowed (RETORT_TEACHER_MAX_BYTES): ra")
    assert list(settings.teachers_dir.iterdir()) == []


def test_an_upload_never_lies_in_memory(api: Api) -> None:
    """Of 48 MiB a few are held at a time."""

    def body() -> Iterator[bytes]:
        yield FILE.removesuffix(b"abc\r\n")
        chunk = b"x" * (1 << 16)
        for _ in range(48 << 4):
            yield chunk
        yield b"\r\n--B--\r\n"

    tracemalloc.start()
    response = api.client.post("/v1/teachers", content=body(), headers=BOUNDARY, timeout=60)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    problem(response, 422, "invalid-teacher")
    assert peak_bytes < 16 << 20
    assert nothing_left(api)


def wait_until(condition: Callable[[], object], limit_s: float = 20) -> None:
    """Another thread brings it about."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.02)


def test_a_client_that_leaves_halfway_leaves_nothing(api: Api) -> None:
    """Its connection breaks while the file is being written."""
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = "POST /v1/teachers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=B\r\n\r\n" + FILE)
        wait_until(lambda: left(api))
    wait_until(lambda: not left(api))
    assert nothing_left(api)


def test_an_upload_that_stalls_is_given_up(tmp_path: Path) -> None:
    """Its client hears why, though it is still sending."""
    with running_api(make_settings(tmp_path, upload_stall_s=0.3)) as api:
        address = urlsplit(api.url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            head = "POST /v1/teachers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=B\r\n\r\n" + FILE)
            answer = b""
            while b"request_id" not in answer and (piece := connection.recv(1 << 16)):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:retort:problem:too-slow" in answer
        assert nothing_left(api)


def test_an_upload_ends_when_the_disk_has_no_more_room(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have filled it since this one began."""
    full = iter([False, False])

    def check(_: Context, needed_bytes: int = 0) -> None:
        if next(full, True):
            raise DiskFloor("full")

    monkeypatch.setattr(Context, "check_disk", check)
    problem(api.upload(b"x" * (8 << 20)), 507, "disk-full")
    assert nothing_left(api)


def test_what_a_killed_process_left_is_swept_at_the_start(tmp_path: Path) -> None:
    """But not what another process is receiving at this moment."""
    settings = make_settings(tmp_path)
    settings.make_folders()
    dead, alive = (settings.teachers_dir / f".incoming-{name}" for name in ("dead", "alive"))
    dead.write_bytes(b"x")
    with alive.open("wb") as receiving:
        fcntl.flock(receiving, fcntl.LOCK_EX)
        with running_api(settings) as api:
            assert api.client.get("/healthz").status_code == 200
            assert left(api) == [".incoming-alive"]
    assert sweep(settings.teachers_dir) == 1
