"""Filters and orders of jobs, and the labels that they are found by, on SQLite and on PostgreSQL."""

from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.engine import Engine

from service.db.database import Database, upgrade_to_head
from service.db.ids import new_id
from service.db.models import JobRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.queries.job_search import JobFilter, JobOrder, RunFilter, find_jobs
from service.db.states import State
from service.errors import NotFound
from tests.support.service_helpers import make_plan, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]
FLOWERS = {"kind": "folder", "path": "Flowers/small"}
NOW = utc_now()


@pytest.fixture
def jobs(api_queries: ApiQueries) -> dict[str, JobRecord]:
    """Four jobs by name, an hour apart; the last one is the newest."""
    first, other = teacher_row("a" * 64), teacher_row("b" * 64)
    other.name = "ResNet 100%"
    teachers = [api_queries.add_teacher(row, lambda: None)[0] for row in (first, other)]
    made = {}
    for name, teacher, dataset, tags, note in (
        ("Über alles", 0, {"kind": "digits"}, ["baseline", "CIFAR"], "watch the loss\nof fold_2"),
        ("zebra", 1, FLOWERS, ["baseline"], ""),
        ("Apple", 0, FLOWERS, [], "baseline"),
        ("apple", 0, {"kind": "digits"}, ["base"], "100%"),
    ):
        plan = make_plan(name=name, dataset=dataset)
        made[name] = api_queries.add_job(plan, teachers[teacher], None, tags=tags, note=note)[0]
    states = [State.FAILED, State.QUEUED, State.SUCCEEDED, State.CANCELLED]
    with api_queries.database.write() as session:
        for place, (job, state) in enumerate(zip(made.values(), states, strict=True)):
            ended = None if state is State.QUEUED else NOW - timedelta(minutes=place)
            values = {"state": state, "finished_at": ended, "created_at": NOW - timedelta(hours=4 - place)}
            session.execute(update(JobRecord).where(JobRecord.id == job.id).values(values))
    return made


def names(api_queries: ApiQueries, wanted: JobFilter, order: JobOrder = JobOrder.NEWEST, limit: int = 9) -> list[str]:
    """Names of the jobs, walked page by page."""
    found, after = [], None
    while True:
        rows, has_more = api_queries.jobs(wanted, after, limit, order)
        found += [row.name for row in rows]
        if not has_more:
            return found
        after = rows[-1].id


def check(api_queries: ApiQueries, cases: Mapping[JobFilter, str]) -> None:
    found = {wanted: ",".join(names(api_queries, wanted)) for wanted in cases}
    assert found == cases


def test_job_search_lets_through_what_all_of_a_filter_holds_for(
    api_queries: ApiQueries, jobs: Mapping[str, JobRecord]
) -> None:
    """Texts case aside, beyond ASCII, too; none of them is a pattern, and a value of one kind is none of another."""
    run = api_queries.runs(jobs["zebra"].id)[0][1]
    cases = {
        JobFilter(): "apple,Apple,zebra,Über alles",
        JobFilter(state=State.QUEUED): "zebra",
        JobFilter(tag="BASELINE"): "zebra,Über alles",
        JobFilter(tag="cifar", state=State.FAILED): "Über alles",
        JobFilter(tag="cifar", state=State.QUEUED): "",
        JobFilter(tag="aseline"): "",
        JobFilter(name="APPL"): "apple,Apple",
        JobFilter(name="ÜBER"): "Über alles",
        JobFilter(name="baseline"): "",
        JobFilter(name="%"): "",
        JobFilter(teacher="resnet 100%"): "zebra",
        JobFilter(teacher=jobs["zebra"].teacher_id): "zebra",
        JobFilter(teacher="ResNet"): "",
        JobFilter(dataset=("digits",)): "apple,Über alles",
        JobFilter(dataset=("flowers/small",)): "Apple,zebra",
        JobFilter(dataset=("nothing", "folder Flowers/small")): "Apple,zebra",
        JobFilter(dataset=("Flowers",)): "",
        JobFilter(created_after=NOW - timedelta(hours=2)): "apple,Apple",
        JobFilter(created_before=NOW - timedelta(hours=2)): "zebra,Über alles",
        JobFilter(text="Baseline"): "Apple,zebra,Über alles",
        JobFilter(text="100%"): "apple,zebra",
        JobFilter(text="fold_2"): "Über alles",
        JobFilter(text="fold-2"): "",
        JobFilter(text="lossx"): "",
        JobFilter(text=jobs["Apple"].id): "Apple",
        JobFilter(text=run.id): "zebra",
        JobFilter(text="e", name="a", tag="base", state=State.CANCELLED): "apple",
    }
    check(api_queries, cases)


def test_job_search_pages_in_its_order_without_loss_or_repetition(
    api_queries: ApiQueries, jobs: Mapping[str, JobRecord]
) -> None:
    """A job that has not ended comes last either way; equal names are in the order of their making."""
    orders = {
        JobOrder.CREATED: "Über alles,zebra,Apple,apple",
        JobOrder.NEWEST: "apple,Apple,zebra,Über alles",
        JobOrder.NAME: "Apple,apple,zebra,Über alles",
        JobOrder.NAME_REVERSED: "Über alles,zebra,apple,Apple",
        JobOrder.STATE: "apple,Über alles,zebra,Apple",
        JobOrder.STATE_REVERSED: "Apple,zebra,Über alles,apple",
        JobOrder.FINISHED: "apple,Apple,Über alles,zebra",
        JobOrder.LAST_FINISHED: "Über alles,Apple,apple,zebra",
    }
    for order in JobOrder:
        for limit in (1, 2, 9):
            assert ",".join(names(api_queries, JobFilter(), order, limit)) == orders[order], (order, limit)
    gone = new_id("job")
    assert len(api_queries.jobs(JobFilter(), gone, 9)[0]) == 4
    with pytest.raises(NotFound, match=gone):
        api_queries.jobs(JobFilter(), gone, 9, JobOrder.NAME)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_job_search_pages_by_ends_whatever_the_time_zone_of_the_server(
    api_queries: ApiQueries, jobs: Mapping[str, JobRecord]
) -> None:
    for zone in ("Asia/Tokyo", "America/New_York"):
        url = api_queries.database.url
        with api_queries.database.write() as session:
            session.execute(text(f"ALTER DATABASE \"{url.database}\" SET timezone = '{zone}'"))
        # Its connections are new ones.
        database = Database(url.render_as_string(hide_password=False))
        elsewhere = ApiQueries(database)
        with database.read() as session:
            assert session.scalar(text("SHOW timezone")) == zone
        for order, last in ((JobOrder.FINISHED, "zebra"), (JobOrder.LAST_FINISHED, "zebra")):
            found = names(elsewhere, JobFilter(), order, 1)
            assert (len(found), found[-1]) == (len(jobs), last)
            # A page behind the one that has not ended.
            assert elsewhere.jobs(JobFilter(), jobs[last].id, 9, order) == ([], False)
        database.close()


def test_job_search_follows_changes_and_a_retry_has_the_labels(
    api_queries: ApiQueries, jobs: Mapping[str, JobRecord]
) -> None:
    id = jobs["Über alles"].id
    changed = api_queries.change_job(id, {"name": "second", "tags": None, "note": "Kept apart"})
    assert (changed.name, changed.tags, changed.note) == ("second", None, "Kept apart")
    check(api_queries, {JobFilter(tag="cifar"): "", JobFilter(name="über"): "", JobFilter(text="kept"): "second"})
    api_queries.change_job(id, {"tags": ["again"]})
    with api_queries.database.write() as session:
        session.execute(text(f"UPDATE runs SET state = 'failed' WHERE job_id = '{id}'"))
    retry, _ = api_queries.retry_job(id, lambda: None)
    assert (retry.name, retry.tags, retry.note) == ("second", ["again"], "Kept apart")
    check(api_queries, {JobFilter(tag="again"): "second,second", JobFilter(text=id): "second,second"})
    with pytest.raises(NotFound):
        api_queries.change_job("job_x", {"name": "x"})


def test_job_search_finds_runs_of_a_state_student_or_method(
    api_queries: ApiQueries, jobs: Mapping[str, JobRecord]
) -> None:
    methods = ["ce", "kd", {"preset": "kd", "temperature": 2}, "dkd"]
    teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    job = api_queries.add_job(make_plan(methods=methods), teacher, None)[0]

    def found(**wanted: object) -> list[str]:
        return [run.method for run in api_queries.runs(job.id, None, 9, RunFilter(**wanted))[0]]  # type: ignore[arg-type]

    assert found(method="kd") == ["kd", "kd(temperature=2)"]
    assert found(method="kd(temperature=2)", state=State.QUEUED, student="cnn_s") == ["kd(temperature=2)"]
    assert found(state=State.FAILED) == found(student="cnn") == found(method="k_") == []


def test_job_search_reads_no_whole_row_of_a_job_that_it_does_not_show(tmp_path: Path) -> None:
    """With SQLite all of the choice comes from one index, whatever is asked for: rows are of 5 kB and more."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    statements: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        statements.append((statement, parameters))

    asked = [JobFilter(state=State.FAILED, text="a"), JobFilter(text="a", tag="b"), JobFilter(created_after=NOW)]
    with closing(Database(url)) as database, database.read() as session:
        event.listen(Engine, "before_cursor_execute", note)
        for wanted in asked:
            for order in JobOrder:
                find_jobs(session, wanted, order, after=None, limit=20)
        event.remove(Engine, "before_cursor_execute", note)
        found = [each for each in statements if each[0].startswith("SELECT")]
        assert len(found) == len(asked) * len(JobOrder)
        for statement, parameters in found:
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert sum("COVERING INDEX ix_jobs_id_state" in row[3] for row in plan) == 1, (statement, plan)
