"""API keys as they are kept: what a secret is, what the command line does with them, whose jobs are whose."""

import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event, text

from service.api.server import build_server
from service.cli import main
from service.db.database import Database
from service.db.ids import new_id
from service.db.job_posting import Idempotency
from service.db.keys.api_keys import FRESH_S, NOTE_USES_S, Keys, any_live_key, digest_of_secret
from service.db.keys.scopes import Scope
from service.db.models import IdempotencyRecord, KeyRecord, utc_now
from service.db.queries.api_queries import ApiQueries
from service.db.revisions import MIGRATIONS
from service.errors import IdempotencyMismatch, NotFound, UnsafeBinding
from tests.support.service_helpers import PostgresServer, make_plan, make_settings, running_api, teacher_row

pytest_plugins = ["tests.support.service_fixtures"]

Retort = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


@pytest.fixture
def retort(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Retort:
    """Runs a command line and returns exit status, standard output and standard error."""
    for name in [name for name in os.environ if name.startswith("RETORT_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


# ------------------------------------------------------------------------------------------------------ the table


def test_a_secret_is_32_random_bytes_and_only_its_digest_is_kept(database: Database, keys: Keys) -> None:
    secrets = {keys.issue("ci", Scope.READ)[1] for _ in range(3)}
    assert len(secrets) == 3
    assert all(re.fullmatch("rt_[0-9a-f]{64}", secret) for secret in secrets)
    with database.read() as session:
        rows = session.execute(text("SELECT * FROM api_keys")).all()
    kept = " ".join(str(value) for row in rows for value in row)
    assert not any(secret.removeprefix("rt_") in kept for secret in secrets)
    assert all(digest_of_secret(secret) in kept for secret in secrets)


def test_a_revoked_key_stays_revoked_and_in_the_list(keys: Keys) -> None:
    """The first time counts; what cannot be an id is not asked for."""
    first, _ = keys.issue("first", Scope.READ)
    second, _ = keys.issue("second", Scope.ADMIN)
    revoked_at = keys.revoke(first.id).revoked_at
    assert revoked_at is not None
    assert keys.revoke(first.id).revoked_at == revoked_at
    assert [row.id for row in keys.list()[0]] == [second.id, first.id]
    assert ([row.id for row in keys.live()[0]], keys.live()[1]) == ([second.id], True)
    keys.revoke(second.id)
    assert (list(keys.live()[0]), keys.live()[1]) == ([], True)
    for unknown in (new_id("key"), "\0", "../x"):
        with pytest.raises(NotFound, match="there is no API key"):
            keys.revoke(unknown)


def test_keys_are_listed_by_pages(keys: Keys) -> None:
    ids = [keys.issue(str(number), Scope.READ)[0].id for number in range(5)][::-1]
    rows, has_more = keys.list(limit=2)
    assert ([row.id for row in rows], has_more) == (ids[:2], True)
    rows, has_more = keys.list(after=ids[2], limit=2)
    assert ([row.id for row in rows], has_more) == (ids[3:], False)


def test_what_is_known_of_keys_is_a_few_seconds_old_at_most() -> None:
    assert FRESH_S <= 5
    assert NOTE_USES_S >= 60


def test_no_request_writes_when_its_key_was_used(tmp_path: Path) -> None:
    """All of them together are noted now and then, and at the end."""
    with running_api(make_settings(tmp_path)) as api:
        key, secret = api.context.keys.issue("ci", Scope.READ)
        statements: list[str] = []
        with api.context.database.read() as session:
            event.listen(session.get_bind(), "before_cursor_execute", lambda *told: statements.append(told[2]))
        before = utc_now()
        for _ in range(20):
            assert api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        # One look at the table, or two, has served them all.
        assert not [line for line in statements if line.startswith(("UPDATE", "INSERT"))]
        assert sum("api_keys" in line for line in statements) <= 4
        api.stop()
        assert sum(line.startswith("UPDATE api_keys") for line in statements) == 1
        used_at = api.context.keys.get(key.id).last_used_at
        assert used_at is not None
        assert before <= used_at <= utc_now()


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_makes_the_first_key_lists_and_revokes(tmp_path: Path, retort: Retort) -> None:
    """Without a service, and without a database; what it makes opens a service that starts later."""
    where = ("--data-dir", tmp_path / "data")
    status, secret, told = retort("keys", "create", "ci", "--scope", "write", *where)
    assert (status, told) == (0, "")
    assert re.fullmatch("rt_[0-9a-f]{64}\n", secret)
    status, text, _ = retort("--json", "keys", "create", "boss", "--scope", "admin", *where)
    boss = json.loads(text)
    assert (boss["name"], boss["scope"], boss["revoked_at"]) == ("boss", "admin", None)
    status, listed, _ = retort("--json", "keys", "list", *where)
    ci = next(key for key in json.loads(listed) if key["name"] == "ci")
    assert "secret" not in listed
    assert secret.strip() not in listed
    with running_api(make_settings(tmp_path)) as api:
        headers = {"Authorization": f"Bearer {secret.strip()}"}
        assert api.client.get("/v1/jobs", headers=headers).status_code == 200
        assert api.client.get("/v1/jobs").status_code == 401
    status, text, _ = retort("keys", "revoke", ci["id"], *where)
    assert (status, text) == (0, f"{ci['id']} is revoked\n")
    status, table, _ = retort("keys", "list", *where)
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [
        [boss["id"], "boss", "admin"],
        [ci["id"], "ci", "write"],
    ]
    with running_api(make_settings(tmp_path)) as api:
        assert api.client.get("/v1/jobs", headers=headers).status_code == 401


def test_the_secret_is_one_line_on_the_narrowest_terminal(
    tmp_path: Path, retort: Retort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied from there."""
    monkeypatch.setenv("COLUMNS", "20")
    _, secret, _ = retort("keys", "create", "ci", "--scope", "read", "--data-dir", tmp_path)
    assert len(secret.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["list"], 1, "there is no database"),
        (["revoke", "key_x"], 1, "there is no database"),
        (["create", "x"], 2, "--scope"),
        (["create", "x", "--scope", "root"], 2, "root"),
        (["create", "", "--scope", "read"], 1, "printable"),
        (["create", "a\nb", "--scope", "read"], 1, "printable"),
        (["create", "x" * 201, "--scope", "read"], 1, "200"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_makes_nothing(
    tmp_path: Path, retort: Retort, arguments: list[str], status: int, says: str
) -> None:
    data = tmp_path / "data"
    code, out, err = retort("keys", *arguments, "--data-dir", data)
    assert (code, out, err.count("\n")) == (status, "", 1)
    assert says in err
    assert not data.exists()


def test_a_key_of_the_database_lets_the_service_listen_to_others(tmp_path: Path, retort: Retort) -> None:
    """Until it is revoked."""
    settings = make_settings(tmp_path, host="0.0.0.0")
    with pytest.raises(UnsafeBinding):
        build_server(settings)
    retort("keys", "create", "ci", "--scope", "read", "--data-dir", settings.data_dir)
    build_server(settings)
    _, listed, _ = retort("--json", "keys", "list", "--data-dir", settings.data_dir)
    retort("keys", "revoke", json.loads(listed)[0]["id"], "--data-dir", settings.data_dir)
    with pytest.raises(UnsafeBinding):
        build_server(settings)


def test_a_database_from_before_there_were_keys_has_none(tmp_path: Path, postgres: PostgresServer) -> None:
    """It is asked before it is migrated."""
    for url in (f"sqlite:///{tmp_path / 'db'}", postgres.create("keyless")):
        upgrade_to(url, "0001")
        assert not any_live_key(url)


# ---------------------------------------------------------------------------------------------------- Idempotency-Key


def test_two_keys_may_use_the_same_idempotency_key(api_queries: ApiQueries) -> None:
    """Neither sees the other's job; each finds its own again, and its body has to be the same."""
    teacher = api_queries.add_teacher(teacher_row(), lambda: None)[0]
    made = {}
    for owner in ("", "key_1", "key_2"):
        once = Idempotency(owner, "same", f"body of {owner}")
        made[owner], is_new = api_queries.add_job(make_plan(), teacher, once, key_id=owner or None)
        assert is_new
        again = api_queries.replay(once)
        assert again is not None
        assert again.id == made[owner].id
        with pytest.raises(IdempotencyMismatch):
            api_queries.replay(Idempotency(owner, "same", "another body"))
    assert len({job.id for job in made.values()}) == 3
    assert [made[owner].key_id for owner in made] == [None, "key_1", "key_2"]


def test_two_keys_may_use_the_same_idempotency_key_over_the_wire(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path)) as api:
        body = api.job_body()
        one, two = (api.context.keys.issue(name, Scope.WRITE) for name in ("one", "two"))
        jobs = []
        for key, secret in (one, two, one):
            headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "same"}
            response = api.client.post("/v1/jobs", json=body, headers=headers)
            jobs.append((response.status_code, response.json()["id"]))
            assert api.records.job(response.json()["id"]).key_id == key.id
        assert [status for status, _ in jobs] == [201, 201, 200]
        assert jobs[0][1] == jobs[2][1] != jobs[1][1]


def test_idempotency_keys_from_before_stay_with_the_operator(tmp_path: Path, postgres: PostgresServer) -> None:
    """The upgrade keeps them, on both databases: a client that repeats its request gets its job."""
    for url in (f"sqlite:///{tmp_path / 'db'}", postgres.create("upgraded")):
        upgrade_to(url, "0002")
        with closing(Database(url)) as database:
            with database.write() as session:
                job = (
                    "INSERT INTO jobs (id, name, state, attempt, teacher_id, teacher, plan, created_at, priority) "
                    "VALUES ('job_1', '', 'queued', 0, 'tch_1', '{}', '{}', '2026-01-01', 0)"
                )
                session.execute(text(job))
                session.execute(text("INSERT INTO idempotency_keys VALUES ('used', 'digest', 'job_1', '2026-01-01')"))
            database.upgrade_to_head()
            found = ApiQueries(database).replay(Idempotency("", "used", "digest"))
            assert found is not None
            assert found.id == "job_1"
            with database.write() as session:
                session.add(IdempotencyRecord(key_id="key_1", key="used", digest="other", job_id="job_1"))
                session.add(KeyRecord(id="key_1", name="ci", digest="d" * 64, scope="read"))


def upgrade_to(url: str, revision: str) -> None:
    """Runs the migrations up to this one."""
    engine = create_engine(Database(url).url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        engine.dispose()
