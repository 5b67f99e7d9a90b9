"""Webhooks of all jobs in API, command line, metrics: those that were given up are seen, with the reason."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from service.cli import main
from service.db.webhook_outbox import DeliveryStatus, WebhookDeliveryRecord
from tests.support.service_helpers import Api, make_plan, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]
URL = "https://hooks.example.org/x"
WHY = "the receiver answered 503"


def deliveries(api: Api) -> dict[DeliveryStatus, str]:
    """Jobs by how far their webhooks are, the oldest first; one without a webhook is there as well."""
    found = {}
    teacher = api.queries.add_teacher(teacher_row(), lambda: None)[0]
    api.queries.add_job(make_plan(), teacher, None)
    for status in (DeliveryStatus.WAITING, DeliveryStatus.GIVEN_UP, DeliveryStatus.DELIVERED):
        found[status] = api.queries.add_job(make_plan(), teacher, None, webhook_url=URL)[0].id
    given_up = {"status": "given_up", "attempts": 13, "last_status_code": 503, "last_error": WHY}
    values = {DeliveryStatus.GIVEN_UP: given_up, DeliveryStatus.DELIVERED: {"status": "delivered", "attempts": 1}}
    row = WebhookDeliveryRecord
    with api.context.database.write() as session:
        for status, changes in values.items():
            session.execute(update(row).where(row.job_id == found[status]).values(changes))
    return found


def test_webhooks_of_all_jobs_are_listed_and_filtered_by_status(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = deliveries(api)
    whole = api.client.get("/v1/webhooks").json()
    assert [each["job_id"] for each in whole["data"]] == list(reversed(jobs.values()))
    first = api.client.get("/v1/webhooks", params={"limit": 1}).json()
    assert first["has_more"]
    rest = api.client.get("/v1/webhooks", params={"after": first["last_id"]}).json()
    assert [*first["data"], *rest["data"]] == whole["data"]
    [given_up] = api.client.get("/v1/webhooks", params={"status": "given_up"}).json()["data"]
    shown = {name: given_up[name] for name in ("job_id", "url", "attempts", "last_status_code", "last_error")}
    assert list(shown.values()) == [jobs[DeliveryStatus.GIVEN_UP], URL, 13, 503, WHY]
    refused = api.client.get("/v1/webhooks", params={"status": "lost"})
    assert refused.status_code == 422
    assert "'waiting', 'pending', 'delivered' or 'given_up'" in refused.json()["detail"]

    assert main(["--url", api.url, "--json", "webhooks", "list", "--status", "given_up"]) == 0
    assert json.loads(capsys.readouterr().out) == [given_up]
    assert main(["--url", api.url, "webhooks", "list"]) == 0
    assert "given up" in capsys.readouterr().out


def test_webhooks_are_counted_by_status(api: Api) -> None:
    deliveries(api)
    families = text_string_to_metric_families(api.client.get("/metrics").text)
    [found] = [family for family in families if family.name == "retort_webhooks"]
    assert {sample.labels["status"]: sample.value for sample in found.samples} == {
        "waiting": 1,
        "pending": 0,
        "delivered": 1,
        "given_up": 1,
    }
