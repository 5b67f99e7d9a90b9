"""Delivery of webhooks: the outbox on both databases, the dispatcher, kills, and the API from POST to message."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import standardwebhooks
from sqlalchemy import update

from service.cli import main
from service.db import transitions
from service.db.database import Database
from service.db.deletions.deletion import Deleter
from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.scheduling.job_control import JobControl
from service.db.states import State
from service.db.transitions import transition
from service.db.webhook_outbox import (
    ATTEMPTS_MAX,
    HOST_MAX,
    RETRIES,
    DeliveryStatus,
    WebhookDeliveryRecord,
    WebhookOutbox,
)
from service.errors import InvalidSettings
from service.settings import Settings
from service.webhooks.allowed import AllowedHosts
from service.webhooks.dispatcher import WebhookDispatcher
from service.webhooks.sender import WebhookSender
from service.webhooks.signature import load_secrets
from tests.support.service_helpers import Api, add_job, finish, make_plan, make_settings, running_api, teacher_row
from tests.support.webhook_receiver import Receiver, receiving

pytest_plugins = ["tests.support.service_fixtures"]
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
URL = "https://hooks.example.org/x"


@pytest.fixture
def outbox(database: Database) -> WebhookOutbox:
    return WebhookOutbox(database)


def post(queries: ApiQueries, url: str = URL) -> str:
    """A queued job with a webhook."""
    teacher = queries.add_teacher(teacher_row(), lambda: None)[0]
    return queries.add_job(make_plan(name="digits"), teacher, None, webhook_url=url)[0].id


def delivery(outbox: WebhookOutbox, job_id: str) -> WebhookDeliveryRecord:
    found = outbox.of_job(job_id)
    assert found is not None
    return found


def set_due(outbox: WebhookOutbox, job_id: str) -> None:
    """As time that goes by."""
    row = WebhookDeliveryRecord
    with outbox.database.write() as session:
        session.execute(update(row).where(row.job_id == job_id).values(next_at=outbox.database.now(session)))


# ------------------------------------------------------------------------------------------------------------- outbox


def test_outbox_has_the_message_from_the_transaction_on_that_ends_the_job(
    api_queries: ApiQueries, queries: EngineQueries, outbox: WebhookOutbox
) -> None:
    job_id, other = post(api_queries), add_job(api_queries).id

    def end_halfway() -> None:
        with outbox.database.write() as session:
            assert transition(session, session.get_one(JobRecord, job_id), State.CANCELLED)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        end_halfway()
    assert (delivery(outbox, job_id).status, delivery(outbox, job_id).body) == (DeliveryStatus.WAITING, None)
    assert outbox.claim({}) == []
    finish(queries, job_id)
    (claim,) = outbox.claim({})
    message = json.loads(claim.body)
    finished_at = queries.job(job_id).finished_at
    assert finished_at is not None
    at = finished_at.isoformat().replace("+00:00", "Z")
    assert message == {
        "type": "job.succeeded",
        "timestamp": at,
        "data": {
            "id": job_id,
            "name": "digits",
            "state": "succeeded",
            "finished_at": at,
            "runs": {"cancelled": 0, "failed": 0, "succeeded": 2},
            "error": None,
            "links": {"job": f"/v1/jobs/{job_id}", "report": f"/v1/jobs/{job_id}/report"},
        },
    }
    assert outbox.of_job(other) is None


def test_outbox_counts_runs_and_tells_the_error_however_a_job_ends(
    api_queries: ApiQueries, queries: EngineQueries, outbox: WebhookOutbox
) -> None:
    cancelled = post(api_queries)
    JobControl(outbox.database).cancel_job(cancelled)
    failed = post(api_queries)
    queries.claim_job()
    assert queries.move_job(failed, State.FAILED, error={"type": "DiskLow", "message": "no room"})
    told = [json.loads(claim.body) for claim in outbox.claim({})]
    assert [message["type"] for message in told] == ["job.cancelled", "job.failed"]
    assert [message["data"]["runs"]["cancelled"] for message in told] == [2, 2]
    assert [message["data"]["error"] for message in told] == [None, {"type": "DiskLow", "message": "no room"}]


def test_outbox_is_due_at_once_where_the_clock_of_whoever_ends_a_job_is_ahead(
    api_queries: ApiQueries, outbox: WebhookOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = post(api_queries)
    monkeypatch.setattr(transitions, "utc_now", lambda: utc_now() + timedelta(hours=1))
    JobControl(outbox.database).cancel_job(job_id)
    assert [claim.attempt for claim in outbox.claim({})] == [1]


def test_outbox_fences_a_claim_that_has_run_out(api_queries: ApiQueries, outbox: WebhookOutbox) -> None:
    job_id = post(api_queries)
    JobControl(outbox.database).cancel_job(job_id)
    (first,) = outbox.claim({})
    assert WebhookOutbox(outbox.database).claim({}) == []
    set_due(outbox, job_id)
    (second,) = WebhookOutbox(outbox.database).claim({})
    assert (second.id, second.body, second.attempt) == (first.id, first.body, 2)
    assert outbox.record(first, 500, "late") is None
    assert outbox.record(second, 200, None) is DeliveryStatus.DELIVERED
    assert outbox.record(second, 500, "again") is None
    row = delivery(outbox, job_id)
    assert (row.status, row.attempts, row.last_status_code) == (DeliveryStatus.DELIVERED, 2, 200)
    assert (row.last_error, row.next_at) == (None, None)
    set_due(outbox, job_id)
    assert outbox.claim({}) == []


def test_outbox_retries_for_a_day_at_least_and_then_gives_up_visibly(
    api_queries: ApiQueries, outbox: WebhookOutbox
) -> None:
    assert sum(RETRIES.delay_s(failures, _Lowest()) for failures in range(1, ATTEMPTS_MAX)) > 86400
    job_id = post(api_queries)
    JobControl(outbox.database).cancel_job(job_id)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        (claim,) = outbox.claim({})
        status = outbox.record(claim, 503, "the receiver answered 503")
        row = delivery(outbox, job_id)
        if attempt < ATTEMPTS_MAX:
            assert status is DeliveryStatus.PENDING
            assert row.next_at is not None
            assert row.next_at > utc_now() + timedelta(seconds=2)
            set_due(outbox, job_id)
    assert (row.status, row.attempts, row.last_status_code) == (DeliveryStatus.GIVEN_UP, ATTEMPTS_MAX, 503)
    assert row.last_error == "the receiver answered 503"


class _Lowest(Random):
    def uniform(self, a: float, b: float) -> float:
        return a


def test_outbox_gives_up_at_410_and_gives_a_retry_its_own_message(
    api_queries: ApiQueries, outbox: WebhookOutbox
) -> None:
    job_id = post(api_queries)
    JobControl(outbox.database).cancel_job(job_id)
    (claim,) = outbox.claim({})
    assert outbox.record(claim, 410, "the receiver answered 410") is DeliveryStatus.GIVEN_UP
    again, _ = api_queries.retry_job(job_id, lambda: None)
    row = delivery(outbox, again.id)
    assert (row.url, row.status, row.id == claim.id) == (URL, DeliveryStatus.WAITING, False)


def test_outbox_claims_a_few_of_a_host_at_once_and_the_others_all_the_same(
    api_queries: ApiQueries, outbox: WebhookOutbox
) -> None:
    stuck = [post(api_queries) for _ in range(HOST_MAX + 2)]
    other = post(api_queries, "https://other.example.org/x")
    for job_id in (*stuck, other):
        JobControl(outbox.database).cancel_job(job_id)
    claims = outbox.claim({"https://hooks.example.org": 1})
    assert [claim.job_id for claim in claims] == [*stuck[: HOST_MAX - 1], other]
    assert outbox.claim({"https://hooks.example.org": HOST_MAX}) == []
    assert [claim.job_id for claim in outbox.claim({})] == stuck[HOST_MAX - 1 :]


@SQLITE
def test_deletion_of_a_job_takes_its_delivery_along(
    api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path)
    settings.make_folders()
    job_id = post(api_queries)
    JobControl(outbox.database).cancel_job(job_id)
    (claim,) = outbox.claim({})
    Deleter(outbox.database, settings).delete_job(job_id)
    assert outbox.of_job(job_id) is None
    assert outbox.record(claim, 200, None) is None


# ------------------------------------------------------------------------------------------------------------- secret


def test_secret_is_made_once_for_this_user_alone_and_what_is_none_is_refused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    (secret,) = load_secrets(settings)
    path = tmp_path / "data" / "webhook_secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_secrets(settings) == [secret]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    own = tmp_path / "own"
    for content in ("", "whsec_c2hvcnQ=\n", "whsec_not base64\n", f"{secret}\n{secret.removeprefix('whsec_')}\n"):
        own.write_text(content)
        with pytest.raises(InvalidSettings) as refused:
            load_secrets(make_settings(tmp_path, webhook_secret_file=own))
        assert str(own) in str(refused.value)
        assert secret.removeprefix("whsec_") not in str(refused.value)


# --------------------------------------------------------------------------------------------------------- dispatcher


@asynccontextmanager
async def dispatching(tmp_path: Path, outbox: WebhookOutbox, hosts: str) -> AsyncIterator[None]:
    settings = make_settings(tmp_path, webhook_hosts=hosts)
    async with WebhookDispatcher(settings, AllowedHosts.of(settings), outbox, poll_s=0.02):
        yield


def dispatch(tmp_path: Path, outbox: WebhookOutbox, hosts: str, until: Callable[[], bool]) -> None:
    """Deliver until something is so."""

    async def work() -> None:
        async with dispatching(tmp_path, outbox, hosts):
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(until):
                    await asyncio.sleep(0.01)

    asyncio.run(work())


@SQLITE
def test_dispatcher_delivers_again_under_the_same_id_after_an_error(
    api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path
) -> None:
    with receiving() as receiver:
        receiver.answers = [500]
        job_id = post(api_queries, f"{receiver.origin}/x")
        JobControl(outbox.database).cancel_job(job_id)
        dispatch(tmp_path, outbox, receiver.origin, lambda: delivery(outbox, job_id).last_status_code == 500)
        row = delivery(outbox, job_id)
        assert (row.status, row.last_error) == (DeliveryStatus.PENDING, "the receiver answered 500")
        set_due(outbox, job_id)
        dispatch(tmp_path, outbox, receiver.origin, lambda: delivery(outbox, job_id).status == DeliveryStatus.DELIVERED)
        first, second = receiver.next(), receiver.next()
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert receiver.messages.empty()


@SQLITE
def test_dispatcher_keeps_no_receiver_waiting_for_one_that_does_not_answer(
    api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path
) -> None:
    with receiving() as stuck, receiving() as other:
        is_over = threading.Event()
        stuck.before_answer = is_over.wait
        ids = [post(api_queries, receiver.origin) for receiver in [stuck] * (HOST_MAX + 2) + [other]]
        for job_id in ids:
            JobControl(outbox.database).cancel_job(job_id)
        hosts = f"{stuck.origin} {other.origin}"
        try:
            dispatch(tmp_path, outbox, hosts, lambda: delivery(outbox, ids[-1]).status == DeliveryStatus.DELIVERED)
            assert [delivery(outbox, job_id).attempts for job_id in ids] == [1] * HOST_MAX + [0, 0, 1]
        finally:
            is_over.set()


@SQLITE
def test_dispatcher_says_in_the_row_what_was_refused_or_did_not_answer(
    api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path
) -> None:
    with receiving() as receiver:
        receiver.answers = [302]
        ids = [post(api_queries, url) for url in (receiver.origin, "http://127.0.0.1:9/", "https://elsewhere.example/")]
        for job_id in ids:
            JobControl(outbox.database).cancel_job(job_id)
        hosts = f"{receiver.origin} http://127.0.0.1:9"
        dispatch(tmp_path, outbox, hosts, lambda: all(delivery(outbox, job_id).last_error for job_id in ids))
        rows = [delivery(outbox, job_id) for job_id in ids]
    assert [row.last_status_code for row in rows] == [302, None, None]
    assert "redirects are not followed" in str(rows[0].last_error)
    assert "ConnectError" in str(rows[1].last_error)
    assert "RETORT_WEBHOOK_HOSTS" in str(rows[2].last_error)


@SQLITE
def test_dispatcher_goes_on_after_a_failure_of_the_machine(
    api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path
) -> None:
    """The file of SSL_CERT_FILE is gone for a while, say."""
    failures = ["no certificates"]

    def open_sender(hosts: AllowedHosts) -> WebhookSender:
        if failures:
            set_due(outbox, job_id)
            raise FileNotFoundError(failures.pop())
        return WebhookSender(hosts)

    async def work(settings: Settings) -> None:
        hosts = AllowedHosts.of(settings)
        async with WebhookDispatcher(settings, hosts, outbox, poll_s=0.02, retry_s=0.02, open_sender=open_sender):
            await asyncio.to_thread(receiver.next)

    with receiving() as receiver:
        job_id = post(api_queries, receiver.origin)
        JobControl(outbox.database).cancel_job(job_id)
        asyncio.run(work(make_settings(tmp_path, webhook_hosts=receiver.origin)))
    assert (failures, delivery(outbox, job_id).attempts) == ([], 2)


_CHILD = """
import asyncio, sys
from pathlib import Path
from service.db.database import Database
from service.db.scheduling.job_control import JobControl
from service.db.webhook_outbox import WebhookOutbox
from service.settings import Settings
from service.webhooks.allowed import AllowedHosts
from service.webhooks.dispatcher import WebhookDispatcher

async def main(url, job_id, folder, hosts):
    database = Database(url)
    JobControl(database).cancel_job(job_id)
    if hosts:
        settings = Settings(data_dir=Path(folder), webhook_hosts=hosts)
        await WebhookDispatcher(settings, AllowedHosts.of(settings), WebhookOutbox(database)).__aenter__()
    print("committed", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@SQLITE
@pytest.mark.parametrize("moment", ["between commit and delivery", "while the receiver works"])
def test_delivery_survives_a_sigkill(
    database_url: str, api_queries: ApiQueries, outbox: WebhookOutbox, tmp_path: Path, moment: str
) -> None:
    is_sending = moment == "while the receiver works"
    with receiving() as receiver:
        is_over = threading.Event()
        receiver.before_answer = is_over.wait
        job_id = post(api_queries, receiver.origin)
        folder, hosts = str(tmp_path / "data"), receiver.origin if is_sending else ""
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, database_url, job_id, folder, hosts], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "committed\n"
        seen = [receiver.next()] if is_sending else []
        child.send_signal(signal.SIGKILL)
        child.communicate()
        is_over.set()
        assert delivery(outbox, job_id).status == DeliveryStatus.PENDING
        set_due(outbox, job_id)
        dispatch(tmp_path, outbox, receiver.origin, lambda: delivery(outbox, job_id).status == DeliveryStatus.DELIVERED)
        seen.append(receiver.next())
    assert len({message.headers["webhook-id"] for message in seen}) == 1
    assert delivery(outbox, job_id).attempts == len(seen)


# ---------------------------------------------------------------------------------------------------------------- API


def delivered(api: Api, job_id: str) -> dict[str, Any]:
    """The job's document once its webhook is delivered."""
    for _ in range(1000):
        job: dict[str, Any] = api.client.get(f"/v1/jobs/{job_id}").json()
        if job["webhook"]["status"] == "delivered":
            return job
        time.sleep(0.02)
    raise AssertionError(job["webhook"])


def check_signature(receiver: Receiver, keys: list[str]) -> dict[str, Any]:
    """Verify the next message with another implementation, for each secret; returns its body."""
    message = receiver.next()
    for key in keys:
        told: dict[str, Any] = standardwebhooks.Webhook(key).verify(message.body, message.headers)
    forged = message.body.replace(b"job.cancelled", b"job.succeeded")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(keys[0]).verify(forged, message.headers)
    return told


def test_job_tells_its_end_to_the_url_that_it_was_posted_with(tmp_path: Path) -> None:
    with receiving() as receiver:
        settings = make_settings(tmp_path, webhook_hosts=receiver.origin)
        (first,) = load_secrets(settings)
        # A second secret, as while receivers are moved to it.
        keys = [first, "whsec_" + "QUJD" * 8]
        settings.webhook_secret_path.write_text("\n".join(keys))
        with running_api(settings) as api:
            job = api.post_job(webhook={"url": f"{receiver.origin}/hook?a=b"})
            assert job["webhook"] == {
                "url": f"{receiver.origin}/hook?a=b",
                "id": job["webhook"]["id"],
                "status": "waiting",
                "attempts": 0,
                "last_attempt_at": None,
                "last_status_code": None,
                "last_error": None,
                "next_attempt_at": None,
            }
            assert api.client.post(f"/v1/jobs/{job['id']}/cancel").json()["webhook"]["status"] == "pending"
            told = check_signature(receiver, keys)
            assert (told["type"], told["data"]["id"]) == ("job.cancelled", job["id"])
            shown = delivered(api, job["id"])["webhook"]
            assert (shown["attempts"], shown["last_status_code"], shown["next_attempt_at"]) == (1, 204, None)
            refused = api.client.post("/v1/jobs", json=api.job_body(webhook={"url": "https://127.0.0.1/"}))
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["pointer"] == "#/webhook/url"
            assert api.post_job()["webhook"] is None


def test_command_line_submits_with_a_webhook_and_tries_one_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def retort(*words: str) -> str:
        capsys.readouterr()
        status = main(words)
        told = capsys.readouterr()
        assert status == 0, told.err
        return told.out

    with receiving() as receiver:
        monkeypatch.setenv("RETORT_WEBHOOK_HOSTS", receiver.origin)
        data_dir = ("--data-dir", str(tmp_path / "data"))
        key = retort("webhooks", "secret", *data_dir).strip()
        assert "answered 204" in retort("webhooks", "test", f"{receiver.origin}/try", *data_dir)
        message = receiver.next()
        assert standardwebhooks.Webhook(key).verify(message.body, message.headers)["type"] == "webhook.test"
        for url, says in (("https://elsewhere.example/", "RETORT_WEBHOOK_HOSTS"), (receiver.origin, "answered 500")):
            receiver.answers = [500]
            assert main(["webhooks", "test", url, *data_dir]) == 1
            assert says in capsys.readouterr().err
        with running_api(make_settings(tmp_path, webhook_hosts=receiver.origin)) as api:
            file = tmp_path / "job.json"
            file.write_text(json.dumps(api.job_body()))
            job_id = retort("--url", api.url, "submit", str(file), "--webhook", receiver.origin).strip()
            shown = " ".join(retort("--url", api.url, "show", job_id).split())
            assert f"waiting, 0 attempts, {receiver.origin}/" in shown
