"""What the service's tests are made of: rows, a PostgreSQL server, and the API on a real port."""

import hashlib
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import onnx
from onnx import TensorProto, helper
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from service.api.dependencies import Context
from service.api.server import build_server
from service.db.database import upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.ids import new_id
from service.db.models import Base, EngineRecord, JobRecord, TeacherRecord
from service.db.queries.api_queries import ApiQueries, digest_of
from service.db.states import State
from service.operations.data_dir import open_database, unknown_files
from service.settings import Settings
from workers.config.job import Plan
from workers.config.teacher import Preprocessing

PREPROCESSING = Preprocessing(channels="gray", mean=(0.5,), std=(0.5,))

# ---------------------------------------------------------------------------------------------------------- databases


@dataclass(frozen=True)
class PostgresServer:
    """A server of our own on a socket in a folder."""

    folder: Path

    def url(self, name: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """A new, empty database; returns its URL."""
        self.execute("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def empty(self, name: str) -> str:
        """Takes the rows out of a migrated database; a new one for every test would take longer.

        Whoever is still connected is cut off: the transaction of a test that failed would lock the tables for ever.
        """
        others = f"datname = '{name}' AND pid <> pg_backend_pid()"
        self.execute(name, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        tables = ", ".join(name for name in Base.metadata.tables if name != EngineRecord.__tablename__)
        self.execute(name, f"TRUNCATE {tables} RESTART IDENTITY")
        reset = "holder = NULL, heartbeat_at = NULL, gpus = NULL, parts = NULL, capacity = NULL"
        self.execute(name, f"UPDATE {EngineRecord.__tablename__} SET {reset}")
        return self.url(name)

    def execute(self, database: str, statement: str) -> None:
        """Runs a statement outside of any transaction."""
        url = make_url(self.url(database)).set(drivername="postgresql+psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


def postgres_binaries() -> Path | None:
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server without a TCP port and with no database of ours; its binaries must be installed."""
    binaries = postgres_binaries()
    assert binaries is not None, "no PostgreSQL server is installed"
    # It refuses to run as root, and its user must be able to enter the folder.
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="retort-pg-"))
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(binaries / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    options = f"-F -c listen_addresses='' -c unix_socket_directories={folder} -c shared_buffers=16MB"
    try:
        run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield PostgresServer(folder)
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@cache
def _migrated_sqlite() -> bytes:
    """An SQLite database with the newest tables and no rows, as a file."""
    with tempfile.TemporaryDirectory(prefix="retort-db-") as folder:
        path = Path(folder) / "retort.sqlite3"
        upgrade_to_head(f"sqlite:///{path}")
        return path.read_bytes()


def new_database(url: str) -> None:
    """``upgrade_to_head`` of a database that is not there yet. One of SQLite is a copy: each migration takes longer."""
    path = Path(make_url(url).database or "")
    if not url.startswith("sqlite") or path.exists():
        upgrade_to_head(url)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_migrated_sqlite())


def make_plan(**changes: object) -> Plan:
    """A small plan: two methods, hence two runs."""
    plan = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["ce", "kd"]}
    return Plan.model_validate({**plan, "training": {"epochs": 3}, **changes})


def teacher_row(sha256: str = "a" * 64, classes: int = 10) -> TeacherRecord:
    """A row as an upload makes it."""
    return TeacherRecord(
        id=new_id("tch"),
        name="teacher",
        sha256=sha256,
        identity=digest_of([sha256]),
        size_bytes=1,
        inputs=[{"name": "x", "dtype": "float32", "shape": ["n", 1, 8, 8]}],
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["n", classes]}],
        output="logits",
        preprocessing=PREPROCESSING.model_dump(mode="json"),
        file_class_names=[],
    )


def add_job(queries: ApiQueries, **changes: object) -> JobRecord:
    """A queued job with its runs."""
    return queries.add_job(make_plan(**changes), queries.add_teacher(teacher_row(), lambda: None)[0], None)[0]


def start_run(queries: EngineQueries, run_id: str) -> int | None:
    """Starts one run; returns the number of its new attempt, or None if it may not start."""
    started = queries.start_attempts([run_id])
    return started[0].attempt if started else None


def finish(queries: EngineQueries, job_id: str, state: State = State.SUCCEEDED) -> None:
    """Takes a queued job and all its runs to an end, as an engine would."""
    claimed = queries.claim_job()
    assert claimed is not None
    assert claimed.id == job_id
    for run in queries.runs(job_id):
        attempt = start_run(queries, run.id)
        assert attempt is not None
        assert queries.move_run(run.id, attempt, state, result={"last": {"top1": 0.5}})
    assert queries.move_job(job_id, state)


def check_whole(settings: Settings) -> int:
    """Every run that succeeded has its artifacts as they were, every teacher its file, and no file is unknown.

    Returns:
        How many runs have.
    """
    with open_database(settings) as database:
        assert unknown_files(settings, database) is None
        records, queries = EngineQueries(database), ApiQueries(database)
        jobs = queries.jobs(None, None, 1000)[0]
        # An evaluation trains nothing, and leaves no file.
        trained = [job for job in jobs if not queries.get(JobRecord, job.id).plan.get("evaluate")]
        done = [run for job in trained for run in records.runs(job.id) if run.state is State.SUCCEEDED]
        for run in done:
            artifacts = queries.artifacts(run.id)
            assert artifacts
            for artifact in artifacts:
                content = (settings.data_dir / artifact.path).read_bytes()
                assert hashlib.sha256(content).hexdigest() == artifact.sha256
        for teacher in queries.page(TeacherRecord, None, 1000)[0]:
            assert settings.teacher_path(teacher.sha256).is_file()
        return len(done)


# ---------------------------------------------------------------------------------------------------------------- API


@dataclass(frozen=True)
class Api:
    """A running API: a client for it, and the same database from inside.

    ``stop`` ends it, ``requests`` is how many it is answering at this moment, ``logs`` what it has logged.
    """

    client: httpx2.Client
    context: Context
    url: str
    stop: Callable[[], None]
    requests: Callable[[], int]
    logs: list[Any]

    @property
    def records(self) -> EngineQueries:
        """The engine's half of the repository."""
        return self.context.records

    @property
    def queries(self) -> ApiQueries:
        """The API's half of the repository."""
        return self.context.queries

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return self.context.settings

    def upload(self, content: bytes | None = None, **fields: str) -> httpx2.Response:
        """Uploads a teacher for grey 8x8 pictures."""
        fields = {"preprocessing": PREPROCESSING.model_dump_json(), **fields}
        files = {"file": ("t.onnx", onnx_bytes() if content is None else content)}
        return self.client.post("/v1/teachers", files=files, data=fields)

    def teacher(self, classes: int = 10) -> str:
        """The id of a teacher that is there with its file, as after an upload."""
        content = onnx_bytes(classes)
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.settings.teacher_path(sha256)
        row = teacher_row(sha256, classes)
        return self.queries.add_teacher(row, lambda: void(path.write_bytes(content)))[0].id

    def job_body(self, **changes: object) -> dict[str, Any]:
        """The body of a job that is accepted."""
        plan = make_plan().model_dump(mode="json", include={"dataset", "students", "methods", "training"})
        return {**plan, "teacher": self.teacher(), **changes}

    def post_job(self, **changes: object) -> dict[str, Any]:
        """A job that was accepted."""
        response = self.client.post("/v1/jobs", json=self.job_body(**changes))
        assert response.status_code == 201, response.text
        job: dict[str, Any] = response.json()
        return job


def open_to_others(folder: Path) -> list[Path]:
    """What of a folder its group or others may read, write or enter; not symbolic links, which have no mode."""
    return [
        path
        for path in (folder, *folder.rglob("*"))
        if stat.S_IMODE(path.lstat().st_mode) & 0o077 and not path.is_symlink()
    ]


def void(_: object) -> None:
    """Forgets a value."""


@contextmanager
def running_api(settings: Settings, *, migrate: bool = True) -> Iterator[Api]:
    """The API in a thread of this process, on a free port."""
    settings.make_folders()
    if migrate:
        new_database(settings.database)
    server = build_server(settings)
    context: Context = server.config.app.state.context  # type: ignore[union-attr]  # uvicorn also takes names
    # asyncio switches Nagle's algorithm off for sockets that say what they are, and only for those.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on a client that comes before the server is ready waits in the queue.
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def stop() -> None:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not end"

        with (
            closing(context.database),
            capture_logs([merge_contextvars]) as logs,
            # It speaks no TLS: the certificates would take as long to read as the application takes to be made.
            httpx2.Client(base_url=url, timeout=30, trust_env=False, verify=False) as client,
        ):
            # Not before: the logs are captured by changing the list of processors, which would fail a line meanwhile.
            thread.start()
            try:
                yield Api(client, context, url, stop, lambda: len(server.server_state.tasks), logs)
            finally:
                stop()


def make_settings(folder: Path, **changes: object) -> Settings:
    """Settings for a service below ``folder``."""
    (folder / "root").mkdir(exist_ok=True)
    given = {
        "data_dir": folder / "data",
        "data_root": folder / "root",
        "disk_floor_bytes": 0,
        "event_poll_s": 0.02,
        "requests_per_s": 0,
    }
    return Settings(**{**given, **changes})


# --------------------------------------------------------------------------------------------------------------- ONNX


def onnx_bytes(classes: int = 10, channels: int = 1, side: int = 8, salt: float = 0.0) -> bytes:
    """A linear classifier of flattened pictures; another ``salt`` makes other bytes."""
    size = channels * side * side
    weight = helper.make_tensor("w", TensorProto.FLOAT, [size, classes], [salt] * (size * classes))
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
