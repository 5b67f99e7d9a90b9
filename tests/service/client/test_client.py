"""The client against the real API, with the network breaking where it hurts."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from service.cli.processes.supervisor import command, free_port
from service.client.client import Client
from service.client.errors import ApiProblem, DamagedDownload, ServiceUnreachable, UnusableProxy, WaitTimeout
from service.client.event_stream import parse_events
from service.client.transport import LONG_S
from service.db.states import State
from service.settings import Settings
from tests.support.client_cases import ARTIFACT, artifact_path, run_with_artifact, tell_and_end
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service_helpers import PREPROCESSING, Api, add_job, finish, make_settings, onnx_bytes, running_api
from workers.onnx.sandboxing import sandbox

pytest_plugins = ["tests.support.service_fixtures"]


def test_client_waits_for_an_import_as_long_as_the_service_may_take(tmp_path: Path) -> None:
    waited = []

    def no_answer(request: httpx2.Request) -> httpx2.Response:
        waited.append(request.extensions["timeout"]["read"])
        raise httpx2.ReadTimeout("timed out", request=request)

    (tmp_path / "logits.npy").write_bytes(b"logits")
    said = pytest.raises(ServiceUnreachable, match=r"may go on with what was sent.*the same file gives the same")
    with Client(transport=httpx2.MockTransport(no_answer)) as client, said:
        client.import_cache(tmp_path / "logits.npy", "numbers")
    # The file is read first, and imported then.
    assert waited[0] > 2 * Settings.model_fields["import_timeout_s"].default


def test_client_waits_for_a_large_upload_as_long_as_the_service_may_take(tmp_path: Path) -> None:
    """Packing reads it twice and writes it, the smoke run reads it again, each at 64 MiB in a second."""
    waited = []

    class Refusing(httpx2.BaseTransport):
        """Reads nothing of the body."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            waited.append(request.extensions["timeout"]["read"])
            return httpx2.Response(413)

    with (tmp_path / "weights").open("wb") as file:
        file.truncate(16 << 30)
    (tmp_path / "m.onnx").touch()
    with Client(transport=Refusing()) as client:
        for data in (None, tmp_path / "weights"):
            with pytest.raises(ApiProblem):
                client.upload_teacher(tmp_path / "m.onnx", data=data)
    assert waited[0] == LONG_S
    assert waited[1] > LONG_S + 4 * sandbox.with_reading(0, 16 << 30)


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url) as client:
        yield client


def port_of(api: Api) -> int:
    port = urlsplit(api.url).port
    assert port is not None
    return port


# ---------------------------------------------------------------------------------------------------------- routes


def test_client_uploads_a_teacher_once_and_it_can_be_seen_and_deleted(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(onnx_bytes())
    preprocessing = PREPROCESSING.model_dump(mode="json")
    teacher = client.upload_teacher(path, preprocessing=preprocessing)
    assert teacher["name"] == "linear"
    assert teacher["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert client.upload_teacher(path, preprocessing=preprocessing)["id"] == teacher["id"]
    assert [found["id"] for found in client.teachers()] == [teacher["id"]]
    assert client.teacher(teacher["id"])["preprocessing"] == teacher["preprocessing"]
    client.delete_teacher(teacher["id"])
    assert list(client.teachers()) == []


def test_client_gives_a_dataset_a_name_that_a_job_can_use(api: Api, client: Client) -> None:
    made = client.create_dataset("numbers", {"kind": "digits"})
    assert client.dataset(made["id"]) == {**made, "notes": None, "bad_pictures": {}}
    job = client.submit(api.job_body(dataset="numbers"))
    assert job["plan"]["dataset"] == {"kind": "digits"}
    client.cancel(job["id"])
    client.delete_dataset(made["id"])
    assert list(client.datasets()) == []


def test_client_lists_methods_and_students(client: Client) -> None:
    assert {"ce", "kd", "dtkd"} <= {method["id"] for method in client.methods()}
    assert {"cnn_s", "resnet8"} <= {student["name"] for student in client.students()}


def test_client_previews_posts_shows_and_cancels_a_job(api: Api, client: Client) -> None:
    preview = client.submit(api.job_body(), dry_run=True)
    assert len(preview["runs"]) == 2
    assert list(client.jobs()) == []
    job = client.submit(api.job_body())
    assert [run["id"] for run in client.runs(job["id"])] == job["run_ids"]
    assert client.run(job["run_ids"][0])["state"] == "queued"
    assert client.metrics(job["run_ids"][0]) == []
    assert client.cancel(job["id"])["state"] == client.job(job["id"])["state"] == "cancelled"
    assert [found["id"] for found in client.jobs(status="cancelled")] == [job["id"]]
    assert list(client.jobs(status="queued")) == []
    assert [row["state"] for row in client.report(job["id"])["rows"]] == ["cancelled", "cancelled"]
    assert client.report_csv(job["id"]).splitlines()[0].startswith("run_id,student,method")


def test_client_pauses_resumes_cancels_and_retries_jobs_and_runs(api: Api, client: Client) -> None:
    job = client.submit({**api.job_body(), "priority": 3})
    first, second = job["run_ids"]
    assert client.pause(job["id"])["state"] == "paused"
    assert client.resume(second)["state"] == "queued"
    assert client.pause(second)["state"] == "paused"
    assert client.resume(job["id"])["state"] == "queued"
    assert client.cancel(first)["state"] == "cancelled"
    again = client.retry(first)
    assert (again["retry_of"], again["priority"], len(again["run_ids"])) == (job["id"], 3, 1)
    assert client.retry(job["id"])["id"] == again["id"]
    assert client.cancel(job["id"])["state"] == "cancelled"
    with pytest.raises(ApiProblem, match="was cancelled, but it can be retried") as refused:
        client.pause(job["id"])
    assert refused.value.status == 409


def test_client_wait_goes_on_through_a_pause_until_the_job_has_ended(api: Api, client: Client) -> None:
    job = client.submit(api.job_body())
    client.pause(job["id"])
    with pytest.raises(WaitTimeout, match="it goes on"):
        client.wait(job["id"], timeout_s=0.3)
    client.resume(job["id"])
    tell_and_end(api, job["id"], 1)
    assert client.wait(job["id"])["state"] == "succeeded"


def test_client_walks_a_list_to_its_end(api: Api, client: Client) -> None:
    expected = [add_job(api.queries).id for _ in range(103)]
    assert [job["id"] for job in client.jobs()] == expected[::-1]


def test_client_ready_is_false_without_an_engine(client: Client) -> None:
    answer = client.ready()
    assert answer["ready"] is False
    assert "no engine" in answer["reasons"][0]


# ---------------------------------------------------------------------------------------------------------- problems


def test_api_problem_names_the_field_and_fits_on_a_line(api: Api, client: Client) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.submit(api.job_body(training={"epochs": 0}))
    problem = caught.value
    assert problem.status == 422
    assert problem.request_id
    assert problem.errors[0]["pointer"] == "#/training/epochs"
    assert "training/epochs: " in str(problem)
    assert "\n" not in str(problem)


def test_api_problem_without_fields_has_its_detail(client: Client) -> None:
    with pytest.raises(ApiProblem, match="there is no job 'job_nope'") as caught:
        client.job("job_nope")
    assert caught.value.status == 404


def test_client_quotes_an_id_so_that_it_cannot_lead_to_another_route(client: Client) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.teacher("../jobs")
    assert caught.value.status == 404


@pytest.mark.parametrize("proxy", ["socks5://u:s3cret@127.0.0.1:1", "ftp://u:s3cret@h", "http://u:s3cret#@h:1"])
def test_unusable_proxy_is_named_without_its_address_and_never_used_for_this_machine(
    api: Api, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("all_proxy", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UnusableProxy, match=r"that ALL_PROXY names .*: `env -u ALL_PROXY retort \.\.\.`") as caught:
        Client("http://retort.example")
    assert "s3cret" not in str(caught.value)
    for host in ("127.0.0.1", "127.8.9.10", "localhost"):
        Client(f"http://{host}:{port_of(api)}").close()
    with Client(api.url) as client:
        assert list(client.jobs()) == []


def test_service_unreachable_says_how_to_start_it() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ServiceUnreachable, match=f"{url}.*`retort serve`"):
        client.job("job_x")


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://127.0.0.1", "http://"])
def test_client_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="is not a service address"):
        Client(url)


def test_client_sends_the_key(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("k" * 32 + "\n")
    with running_api(make_settings(tmp_path, api_key_file=key_file)) as api:
        with Client(api.url, api_key="k" * 32) as client:
            assert list(client.jobs()) == []
        with Client(api.url) as client, pytest.raises(ApiProblem) as caught:
            list(client.jobs())
    assert caught.value.status == 401


# ------------------------------------------------------------------------------------------------ broken connections


def test_client_submit_does_not_post_twice_after_a_lost_answer(api: Api) -> None:
    with CuttingProxy(port_of(api), [0]) as proxy, Client(proxy.url) as client:
        job = client.submit(api.job_body())
        assert len(proxy.passed) == 2
    with Client(api.url) as client:
        assert [found["id"] for found in client.jobs()] == [job["id"]]


def test_client_submit_of_one_job_twice_makes_two_jobs(api: Api, client: Client) -> None:
    body = api.job_body()
    assert client.submit(body)["id"] != client.submit(body)["id"]
    once = client.submit(body, idempotency_key="mine")
    assert client.submit(body, idempotency_key="mine")["id"] == once["id"]


def messages(events: list[dict[str, Any]]) -> list[object]:
    return [event["data"]["message"] for event in events if event["type"] == "log"]


def test_client_events_lose_and_repeat_nothing_where_the_stream_breaks(api: Api) -> None:
    job_id = add_job(api.queries).id
    tell_and_end(api, job_id, 40)
    with Client(api.url) as client:
        whole = list(client.events(job_id))
        run_events = list(client.events(api.records.runs(job_id)[0].id))
    assert messages(whole) == [f"line {n}" for n in range(40)]
    assert whole[-1]["type"] == "done"
    assert {event.get("run_id") for event in run_events[:-1]} == {api.records.runs(job_id)[0].id}
    # Cut in the head, in the middle of an event, and in the last.
    with CuttingProxy(port_of(api), [100, 1500, 4001]) as proxy, Client(proxy.url) as client:
        assert list(client.events(job_id)) == whole
        assert len(proxy.passed) == 4


def test_client_events_begin_after_what_was_seen(api: Api, client: Client) -> None:
    job_id = add_job(api.queries).id
    tell_and_end(api, job_id, 5)
    seen = list(client.events(job_id))
    assert list(client.events(job_id, after=seen[2]["seq"])) == seen[3:]


def test_client_wait_ends_with_the_job(api: Api, client: Client) -> None:
    job_id = add_job(api.queries).id
    finish(api.records, job_id, State.FAILED)
    assert client.wait(job_id)["state"] == "failed"


def test_client_wait_for_a_job_that_goes_on_ends_with_the_time_given(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, keep_alive_s=0.05)) as api, Client(api.url) as client:
        job_id = add_job(api.queries).id
        with pytest.raises(WaitTimeout, match=job_id):
            client.wait(job_id, timeout_s=0.2)


def test_client_events_go_on_after_a_service_that_is_killed_comes_back(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    port = free_port()
    environment = {
        **os.environ,
        "RETORT_DATA_DIR": str(settings.data_dir),
        "RETORT_PORT": str(port),
        "RETORT_EVENT_POLL_S": "0.02",
    }

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command("api"), env=environment, stdout=subprocess.DEVNULL)

    with running_api(settings) as inside, Client(f"http://127.0.0.1:{port}") as client:
        job_id = add_job(inside.queries).id
        job = inside.records.claim_job()
        assert job is not None

        def tell(n: int) -> None:
            inside.records.record_events(job_id, None, job.attempt, [(n, {"type": "log", "message": f"line {n}"})])

        tell(0)
        first = start()
        try:
            events = client.events(job_id)
            seen = [next(event for event in events if event["type"] == "log")]
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        tell(1)
        second = start()
        try:
            seen.append(next(event for event in events if event["type"] == "log"))
            assert inside.records.move_job(job_id, State.CANCELLED)
            rest = [event["type"] for event in events]
        finally:
            second.terminate()
            second.wait()
    assert messages(seen) == ["line 0", "line 1"]
    assert rest == ["state", "state", "state", "done"]


def test_client_events_give_up_when_the_service_stays_away(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path)) as api, Client(api.url) as client:
        job_id = add_job(api.queries).id
        events = client.events(job_id, patience_s=0.5)
        api.stop()
        with pytest.raises(ServiceUnreachable):
            next(events)


# --------------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def run_id(api: Api) -> str:
    """A run that has left one file of 3 MB."""
    return run_with_artifact(api, 3_000_000)


def test_download_that_breaks_goes_on_where_it_was(api: Api, run_id: str, tmp_path: Path) -> None:
    content = artifact_path(api, run_id).read_bytes()
    with CuttingProxy(port_of(api), [1_000_000, 1_200_000]) as proxy, Client(proxy.url) as client:
        path = client.download(run_id, ARTIFACT, tmp_path / ARTIFACT)
        assert path.read_bytes() == content
        assert len(proxy.passed) == 3
        assert sum(proxy.passed) < len(content) + 100_000
    assert [file.name for file in tmp_path.glob(f"*{ARTIFACT}*")] == [ARTIFACT]


def test_download_goes_on_where_an_earlier_process_ended(api: Api, run_id: str, tmp_path: Path) -> None:
    content = artifact_path(api, run_id).read_bytes()
    partial = tmp_path / f".{ARTIFACT}.{hashlib.sha256(content).hexdigest()[:16]}.part"
    partial.write_bytes(content[:2_900_000])
    there: list[int] = []
    with CuttingProxy(port_of(api), []) as proxy, Client(proxy.url) as client:
        client.download(run_id, ARTIFACT, tmp_path / ARTIFACT, on_bytes=there.append)
        assert sum(proxy.passed) < 200_000
    assert (tmp_path / ARTIFACT).read_bytes() == content
    assert there[-1] == len(content)


def test_download_that_was_complete_but_not_named_is_only_checked(
    api: Api, client: Client, run_id: str, tmp_path: Path
) -> None:
    content = artifact_path(api, run_id).read_bytes()
    partial = tmp_path / f".{ARTIFACT}.{hashlib.sha256(content).hexdigest()[:16]}.part"
    partial.write_bytes(content)
    assert client.download(run_id, ARTIFACT, tmp_path / ARTIFACT).read_bytes() == content


def test_download_that_is_damaged_is_refused_and_not_kept(
    api: Api, client: Client, run_id: str, tmp_path: Path
) -> None:
    content = bytearray(artifact_path(api, run_id).read_bytes())
    content[1_500_000] ^= 1
    artifact_path(api, run_id).write_bytes(content)
    (tmp_path / ARTIFACT).write_bytes(b"an earlier file")
    with pytest.raises(DamagedDownload, match="SHA-256"):
        client.download(run_id, ARTIFACT, tmp_path / ARTIFACT)
    assert (tmp_path / ARTIFACT).read_bytes() == b"an earlier file"
    assert list(tmp_path.glob(".*")) == []


def test_download_of_an_unknown_artifact_is_refused_with_those_there_are(
    client: Client, run_id: str, tmp_path: Path
) -> None:
    with pytest.raises(ApiProblem, match=ARTIFACT):
        client.download(run_id, "model.pt", tmp_path / "model.pt")
    assert list(tmp_path.glob("*model*")) == []


# ------------------------------------------------------------------------------------------------- the event format


def test_parse_events_takes_any_chunks() -> None:
    stream = (
        b': hello\n\nid: 1\nevent: log\ndata: {"seq": 1, "text": "a\xe2\x80\xa8b"}\n\n'
        b'event: two\r\ndata: {"seq":\r\ndata: 2}\r\n\r\nevent: cut\ndata: {"seq": 3}\n'
    )
    expected = [None, {"type": "log", "seq": 1, "text": "a\u2028b"}, {"type": "two", "seq": 2}]
    assert list(parse_events([stream])) == expected
    assert list(parse_events(stream[i : i + 1] for i in range(len(stream)))) == expected
