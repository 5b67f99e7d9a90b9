"""``retort edit``, and the labels and filters of jobs on the command line and in the client."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.cli import main
from service.cli.base import BadInput
from service.cli.job_commands.job_labels import moment_of
from service.client.client import Client
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]
Cli = Callable[..., str]


@pytest.fixture
def cli(shared_api: Api, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line for the service of these tests; returns what it says, where it fails as well."""

    def run(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["--url", shared_api.url, *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


def test_job_labels_are_given_at_submit_edited_and_found(shared_api: Api, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(shared_api.job_body(name="lr sweep", tags=["cifar"])))
    id = cli("submit", file, "--tag", "base line", "--tag", "cifar", "--note", "see").strip()
    other = cli("submit", file, "--tag", "other").strip()
    job = shared_api.client.get(f"/v1/jobs/{id}").json()
    assert (job["tags"], job["note"]) == (["cifar", "base line"], "see")
    listed = cli("jobs", "--tag", "CIFAR", "--sort", "name", "--since", "1h", "--state", "queued")
    assert listed.index(id) < listed.index(other)
    assert "cifar, base line" in listed
    for filters in (["--tag", "base line"], ["--search", "see"], ["--name", "SWEEP", "--search", id]):
        assert [entry["id"] for entry in json.loads(cli("--json", "jobs", *filters))] == [id]
    for filters in (["--teacher", "nobody"], ["--dataset", "folder"], ["--status", "failed"], ["--tag", "lr"]):
        assert json.loads(cli("--json", "jobs", *filters)) == []
    edited = cli("edit", id, "--name", "second", "--tag", "new", "--untag", "CIFAR", "--note", "")
    assert [line.strip().split(maxsplit=1) for line in edited.splitlines()] == [
        ["job", id],
        ["name", "second"],
        ["tags", "base line, new"],
    ]
    assert "base line, new" in cli("show", id)
    assert "it has base line, new" in cli("edit", id, "--untag", "gone", status=1)
    assert "give --name, --note, --tag or --untag" in cli("edit", id, status=1)
    with Client(shared_api.url) as client:
        assert client.update_job(id, tags=[])["tags"] == []
        assert client.job(id)["name"] == "second"
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        assert id in [job["id"] for job in client.jobs(name="second", created_after=hour_ago, sort="name")]
        assert list(client.jobs(created_before=hour_ago)) == []
        assert [run["method"] for run in client.runs(id, method="kd")] == ["kd"]
        assert list(client.teachers(name="none")) == list(client.datasets(name="none")) == []


def test_moment_of_takes_dates_times_and_ages() -> None:
    assert moment_of("2026-11-30T08:00:00+02:00") == datetime(2026, 11, 30, 6, tzinfo=UTC).astimezone().isoformat()
    assert datetime.fromisoformat(moment_of("2026-11-30")) == datetime(2026, 11, 30).astimezone()
    for age, seconds in {"90m": 5400, "2h": 7200, "3d": 259200, "1w": 604800}.items():
        ago = datetime.now(UTC) - datetime.fromisoformat(moment_of(age))
        assert abs(ago.total_seconds() - seconds) < 60
    for wrong in ("yesterday", "7", "d", "7y", "999999w"):
        with pytest.raises(BadInput, match=wrong):
            moment_of(wrong)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["jobs", "--tags", "a"], "No such option: --tags (Possible options: --tag) (see"),
        (["jobs", "--user", "a"], "No such option: --user (see"),
        (["jobs", "--sorted", "a"], "No such option: --sorted (Possible options: --sort) (see"),
        (["cache", "list", "--limits"], "No such option: --limits (see"),
    ],
)
def test_unknown_option_is_answered_with_the_nearest_if_one_is_near(cli: Cli, arguments: list[str], says: str) -> None:
    assert says in cli(*arguments, status=2)
