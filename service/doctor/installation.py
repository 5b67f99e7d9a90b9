"""Checks of the installation: database, migrations, keys, engine, port, datasets."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service.api.auth import check_binding, has_keys, is_loopback, load_key_digest
from service.api.schemas.health import Health
from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.doctor.finding import Finding
from service.errors import NewerDatabase, ServiceError
from service.operations.data_dir import STAGING, unknown_files
from service.operations.readiness import Readiness, ReadinessCheck
from service.paths import local_url
from service.settings import Settings
from workers.config.dataset import DatasetSpec
from workers.data.kinds.registry import built_in_kinds, kind_classes
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset
from workers.texts import some_of

ENTRIES_MAX = 200
# The check that says more of a part.
_SEE = {"ray": "ray` and `ray folder", "gpu": "gpu` and `torch"}
_START = "`retort serve` (or `retort api` and `retort engine`)"


def check_database(settings: Settings) -> Finding:
    """Check that the database can be reached and written."""
    with closing(Database(settings.database)) as database:
        where = database.url.render_as_string(hide_password=True)
        if _is_missing(database):
            return Finding("ok", f"{where} is not there yet; {_START} makes it")
        try:
            # A transaction that writes nothing, but waits for its turn to.
            with database.write() as session:
                version = "sqlite_version()" if database.is_sqlite else "current_setting('server_version')"
                found = f"{where}, version {session.scalar(text(f'SELECT {version}'))}"
        except SQLAlchemyError as error:
            advice = "mend or restore it" if database.is_sqlite else "start the server, or mend RETORT_DATABASE_URL"
            return Finding("fail", f"{where}: {_first_line(error)}", advice)
    return Finding("ok", found)


def check_migrations(settings: Settings) -> Finding:
    """Check that the database's tables are those of this version."""
    with closing(Database(settings.database)) as database:
        if _is_missing(database):
            return Finding("ok", "none yet; they are run with the first start")
        try:
            if database.is_at_head():
                return Finding("ok", "the database is at the newest one")
            database.check_version()
        except SQLAlchemyError as error:
            return Finding("fail", f"not known: {_first_line(error)}", "see `database`")
        except NewerDatabase as error:
            return Finding("fail", str(error), "do what this says: this version does not start")
    return Finding("fail", "the database is not at the newest one of this version", f"start {_START}, which migrates")


def check_files(settings: Settings) -> Finding:
    """Check that the database knows the files beside it."""
    staging = settings.data_dir / STAGING
    if staging.exists():
        return Finding(
            "fail", f"a restore was not finished: {staging} is there", "give the same `retort restore` again"
        )
    with closing(Database(settings.database)) as database:
        try:
            if _is_missing(database) or not database.is_at_head():
                return Finding("ok", "nothing is looked for without a database of this version")
            unknown = unknown_files(settings, database)
        except SQLAlchemyError as error:
            return Finding("fail", f"not known: {_first_line(error)}", "see `database`")
    if unknown:
        return Finding("warn", unknown, "do what this says")
    return Finding("ok", "the database knows the jobs and teachers that have files")


def check_keys(settings: Settings) -> Finding:
    """Check the keys: who may call."""
    try:
        load_key_digest(settings.api_key_file)
        check_binding(settings)
        keys = has_keys(settings)
    except ServiceError as error:
        return Finding("fail", str(error), "do what this says: without it the API does not start")
    except SQLAlchemyError as error:
        return Finding("fail", f"keys cannot be looked up: {_first_line(error)}", "see `database`")
    if not keys:
        return Finding("ok", f"there are none, so only this machine may call, at {settings.host}")
    path = settings.api_key_file
    if path is not None and path.stat().st_mode & 0o004:
        return Finding("warn", f"everybody on this machine can read {path}", f"chmod o-r {path}")
    reach = "this machine alone" if is_loopback(settings.host) else f"others, at {settings.host}"
    return Finding("ok", f"a key is asked for; the service is reachable for {reach}")


def check_engine(settings: Settings) -> Finding:
    """Has one been heard of?"""
    with closing(Database(settings.database)) as database:
        if _is_missing(database):
            return Finding("warn", "none has ever led", f"start {_START}")
        try:
            # In the driver's words, which readiness keeps from strangers.
            EngineQueries(database).lease()
        except SQLAlchemyError as error:
            return Finding("fail", f"not known: {_first_line(error)}", "see `database` and `migrations`")
        look = ReadinessCheck(database, settings).look()
    if look.parts["database"].reason is not None:
        return Finding("fail", f"not known: {look.parts['database'].reason}", "see `database` and `migrations`")
    if look.heartbeat_age_s is None:
        return Finding("warn", f"none leads: jobs wait{_last_errors(look)}", f"start {_START}")
    silence = look.parts["lease"].reason or (None if look.parts["lease"].ok else look.parts["clock"].reason)
    if silence is not None:
        advice = f"start {_START}; if one runs, its log says why it waits, or why it ended"
        return Finding("fail", f"{silence}{_last_errors(look)}", advice)
    found = f"the leading one was last heard of {max(look.heartbeat_age_s, 0):.0f} s ago"
    if not look.ready:
        wrong = ", ".join(f"`{_SEE.get(name, name)}`" for name, part in look.parts.items() if part.reason is not None)
        return Finding("fail", f"{found}; {'; '.join(look.reasons)}", f"see {wrong}")
    return Finding("ok", f"{found}{_last_errors(look)}")


def _last_errors(look: Readiness) -> str:
    """Last errors of the parts that have reported nothing since."""
    errors = [(name, part.last_error) for name, part in look.parts.items() if part.reason is None and part.last_error]
    return "".join(
        f"; last error of {name}, at {error.at:%Y-%m-%d %H:%M:%S}Z: {error.message}" for name, error in errors
    )


def check_port(settings: Settings) -> Finding:
    """Check that the port is free, or this service's."""
    host, port = settings.host, settings.port
    if port == 0:
        return Finding("ok", "a free one is taken at the start")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return Finding("ok", f"{port} on {host} is free")
        except OSError as error:
            reason = error.strerror
    try:
        answer = httpx2.get(f"{local_url(host, port)}/healthz", timeout=5, trust_env=False)
        if answer.json() == Health().model_dump(mode="json"):
            return Finding("ok", f"a service of ours answers at {host} port {port}")
    except (httpx2.HTTPError, ValueError):
        pass
    return Finding("fail", f"cannot listen at {host} port {port}: {reason}", "set RETORT_PORT or RETORT_HOST")


def check_data_root(settings: Settings) -> Finding:
    """Check that the data root can be read and has a dataset that a job could name."""
    root = settings.data_root.resolve()
    built_in = f"jobs can use the built-in {', '.join(built_in_kinds())} alone"
    if not root.is_dir():
        advice = "set RETORT_DATA_ROOT to the folder with your datasets"
        return Finding("warn", f"there is no folder {root}: {built_in}", advice)
    sets = [_named(spec) for spec in _candidates(root) if _is_data_set(spec, root)]
    if not sets:
        sought = ", ".join(cls.sought for cls in kind_classes() if cls.sought)
        advice = f"put one there: see the README for {sought}"
        return Finding("warn", f"no dataset lies in {root}: {built_in}", advice)
    return Finding("ok", f"{root} has {some_of(sets, 5)}")


def _candidates(root: Path) -> Iterator[DatasetSpec]:
    """Candidates for a dataset: the root itself, a folder in it, a file in it."""
    entries = sorted(root.iterdir())[:ENTRIES_MAX]
    folders = [entry for entry in entries if entry.is_dir()]
    for path in (root, *folders, *(entry for entry in entries if entry not in folders)):
        for cls in kind_classes():
            yield from cls.candidates(path, path.relative_to(root).as_posix())


def _is_data_set(spec: DatasetSpec, root: Path) -> bool:
    try:
        examine(spec, root)
    except (InvalidDataset, OSError):
        return False
    return True


def _named(spec: DatasetSpec) -> str:
    return f"{spec.kind} {getattr(spec, 'path', '')}".strip()


def _is_missing(database: Database) -> bool:
    """Whether it is a file that was not made yet; to connect would make it."""
    return database.is_sqlite and not Path(database.url.database or "").is_file()


def _first_line(error: SQLAlchemyError) -> str:
    """The driver's own words, without the statement and the link to a manual."""
    return (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]
