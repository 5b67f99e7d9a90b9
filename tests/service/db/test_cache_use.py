"""Queries of the use of caches, on both databases."""

from sqlalchemy import update

from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.db.job_teachers import ChosenTeacher, imported_record
from service.db.models import JobRecord, Json
from service.db.queries.api_queries import ApiQueries
from service.db.queries.cache_use import TrainedRun, cache_events, jobs_of_cache, trained_runs
from service.db.queries.packed_events import compact
from service.db.states import State
from tests.support.service_helpers import add_job, finish, make_plan, teacher_row
from tests.support.store_cases import make_spec
from workers.teacher.imports.imported_specs import imported_preprocessing

pytest_plugins = ["tests.support.service_fixtures"]


def test_jobs_of_a_cache_come_newest_first_with_what_was_inferred_for_them(
    database: Database, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Packed events included; a job without caches, or with others, is none of them."""
    keys = ["a" * 64, "b" * 64]
    jobs = [add_job(api_queries).id for _ in range(4)]
    with database.write() as session:
        for job, caches in zip(jobs, ({"train": keys[0]}, None, {"test": keys[0]}, {"train": keys[1]}), strict=True):
            session.execute(update(JobRecord).where(JobRecord.id == job).values(caches=caches))
    found, total = jobs_of_cache(database, keys[0], 10)
    assert ([job.id for job in found], total, found[0].caches) == ([jobs[2], jobs[0]], 2, {"test": keys[0]})
    assert [job.id for job in jobs_of_cache(database, keys[0], 1)[0]] == [jobs[2]]
    runs = trained_runs(database, jobs[:1])
    assert {(run.job_id, run.epoch, run.method_spec["preset"]) for run in runs} == {
        (jobs[0], 0, "ce"),
        (jobs[0], 0, "kd"),
    }
    assert isinstance(runs[0], TrainedRun)
    events: list[Json] = [{"type": "cache_ready", "cache": key, "rows_inferred": 5, "seconds": 2.0} for key in keys]
    claimed = queries.claim_job()
    assert claimed is not None
    queries.record_events(claimed.id, None, claimed.attempt, list(enumerate(events)))
    before = cache_events(database, jobs)
    assert [(job, data["cache"]) for job, data in before] == [(jobs[0], key) for key in keys]
    for run in queries.runs(jobs[0]):
        assert queries.move_run(run.id, 0, State.CANCELLED)
    assert queries.move_job(jobs[0], State.CANCELLED)
    assert compact(database, jobs[0]) > 0
    assert cache_events(database, jobs) == before
    assert cache_events(database, jobs[1:]) == []


def test_imported_caches_are_in_use_while_a_job_waits_also_of_a_retry_and_of_a_combination(
    database: Database, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """Each is found by ``user_of_cache``, so that nobody deletes it, and by ``caches_in_use``."""
    train, test = (make_spec(preprocessing=imported_preprocessing("logits", None), split=s) for s in ("train", "test"))
    logits = ChosenTeacher(imported_record("a notebook", train), caches={"train": train, "test": test})
    keys = {"train": train.key, "test": test.key}
    row = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    for teachers, told in (
        ((logits,), keys),
        ((logits, ChosenTeacher(row)), None),
        ((ChosenTeacher(row), logits), None),
    ):
        job = api_queries.add_job(make_plan(), teachers[0].record, None, teachers=teachers)[0]
        finish(queries, job.id, State.FAILED)
        assert queries.caches_in_use() == {}
        assert api_queries.user_of_cache(test.key) is None
        again = api_queries.retry_job(job.id, lambda: None)[0]
        assert again.caches == job.caches == told
        assert {id: set(found) for id, found in queries.caches_in_use().items()} == {again.id: set(keys.values())}
        assert {api_queries.user_of_cache(key) for key in keys.values()} == {again.id}
        for run in queries.runs(again.id):
            assert queries.move_run(run.id, 0, State.CANCELLED)
        assert queries.move_job(again.id, State.CANCELLED)
