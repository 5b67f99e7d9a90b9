"""Documents of the client: attributes beside items, fields as the API answers, waiting with bars, data frames."""

import json
import sys
from collections.abc import Iterator
from typing import get_type_hints

import pytest

from service.client import Client
from service.client.documents import Job, JobPreview, JobProgress
from service.client.errors import MissingPackage
from service.client.typed_document import TypedDocument
from tests.support.client_cases import tell_and_end
from tests.support.reported import post_results, result
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]


@pytest.fixture(scope="module")
def client(shared_api: Api) -> Iterator[Client]:
    with Client(shared_api.url) as client:
        yield client


def test_typed_document_has_fields_as_attributes_within_it_too() -> None:
    raw = {"id": "job_1", "progress": {"inference": {"rows_done": 3}, "runs": {"queued": 2}}, "of_a_newer_service": 1}
    job = Job(raw)
    assert job == raw
    assert job.progress.runs == {"queued": 2}
    assert isinstance(job.progress, JobProgress)
    assert job.progress.inference is not None
    assert job.progress.inference.rows_done == job["progress"]["inference"]["rows_done"] == 3
    assert getattr(job, "of_a_newer_service") == 1  # noqa: B009  # no field that a type checker knows
    assert {"of_a_newer_service", "progress", "items"} <= set(dir(job))
    assert not hasattr(job, "nonsense")
    with pytest.raises(AttributeError, match="Job has no field 'stat'; it has id, progress, of_a_newer_service"):
        getattr(job, "stat")  # noqa: B009
    preview = JobPreview({"runs": [{"name": "a"}, {"name": "b"}]})
    assert [run.name for run in preview.runs] == ["a", "b"]
    assert json.loads(json.dumps(preview)) == {"runs": [{"name": "a"}, {"name": "b"}]}


def test_documents_that_the_api_answers_have_every_field_of_their_class(shared_api: Api, client: Client) -> None:
    job = client.submit(shared_api.job_body())
    preview = client.submit(shared_api.job_body(), dry_run=True)
    events = list(client.stored_events(job.id))
    answers: list[TypedDocument] = [
        *(job, *client.jobs(), *client.runs(job.id), preview, *preview.runs, preview.views, *events),
        *(job.report(), *job.report().rows, client.compare([job.id]), client.teacher(job.teacher), job.progress),
        *(
            client.create_dataset("documents", {"kind": "digits"}),
            client.gc(dry_run=True),
            client.gc(dry_run=True).usage,
        ),
        *(client.methods()[0], client.methods()[0].needs, client.students()[0], client.recipes()[0]),
    ]
    job.cancel()
    assert len({type(answer) for answer in answers}) > 15
    for answer in answers:
        missing = get_type_hints(type(answer)).keys() - answer.keys()
        assert not missing, type(answer)


def test_job_waits_with_bars_on_a_terminal_and_renews_itself(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(api.url) as client:
        job = client.submit(api.job_body())
        tell_and_end(api, job.id, 1)
        assert job.state == "queued"
        assert job.wait() is job
        assert job.state == "succeeded"
        assert capsys.readouterr() == ("", "")
        # How rich is told that there is a terminal.
        monkeypatch.setenv("FORCE_COLOR", "1")
        job.wait()
        assert "2/2" in capsys.readouterr().err
        job.wait(progress=False)
        assert client.wait(job.id) == job
        assert capsys.readouterr() == ("", "")


def test_report_becomes_data_frames_and_markdown(
    shared_api: Api, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {("ce", 0): 0.5, ("ce", 1): 0.6, ("kd", 0): 0.7, ("kd", 1): 0.9}
    job_id = post_results(shared_api, {key: result(value) for key, value in accuracies.items()})
    report = client.job(job_id).report(confidence=0.9)
    frame = report.to_pandas()
    assert dict(zip(zip(frame["method"], frame["seed"], strict=True), frame["accuracy"], strict=True)) == accuracies
    over_seeds = report.to_pandas("seeds").set_index("method")
    assert over_seeds["test.top1.mean"].to_dict() == pytest.approx({"ce": 0.55, "kd": 0.8})
    assert over_seeds["test.difference.mean"]["kd"] == pytest.approx(0.25)
    assert report.to_markdown() == client.report_text(job_id, "markdown", group="seeds", confidence=0.9)
    assert report.to_markdown("runs") != report.to_markdown()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackage, match=r"data frame needs the package pandas, .* pip install pandas"):
        report.to_pandas()
