"""Engine process: the lease, the heartbeat, Ray, the end. ``scheduler`` does the work in between."""

import contextlib
import itertools
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db.database import DatabaseDiskError
from service.db.engine_queries import EngineQueries
from service.db.lease import AHEAD_MAX_S, Lease
from service.engine.housekeeping import Housekeeper
from service.engine.scheduler import Scheduler
from service.errors import InvalidSettings, LeaseLost, RayFailed
from service.gpus import GpuReport, GpuWatch
from service.operations.data_dir import open_database
from service.operations.open_files import raise_open_files
from service.operations.readiness import EngineParts
from service.settings import Settings
from workers import signals
from workers.cluster.ray_cluster import Cluster
from workers.cluster.ray_head import visible_gpus
from workers.texts import shortened

log = structlog.get_logger("retort.engine")

TICK_S = 0.2
RENEW_S = 5.0
LEASE_TTL_S = 30.0
CHECKPOINT_S = 30.0
# From the signal to the end: runs leave a checkpoint at their next batch; an evaluation may have to end first.
PUT_DOWN_S = 30.0
WAITING_LOG_S = 60.0
RAY_STARTS_MAX = 5
# After the first failure; twice as long after each further one.
RAY_RETRY_S = 1.0
DATABASE_RETRY_S = 1.0


def run_engine(settings: Settings) -> None:
    """The engine process: wait for the lease, find or start Ray, work until a signal, leave all resumable.

    Ray is a process of its own. When it dies, a new one is started here and every run goes on from its checkpoint; when
    this process dies, its successor finds Ray with the runs in it.

    Raises:
        DataDirBusy, NewerDatabase, sqlalchemy.exc.SQLAlchemyError: as ``open_database``.
        InvalidSettings: no run could ever start, or CUDA may see fewer GPUs than are asked for.
        RayFailed: Ray does not start, ``RAY_STARTS_MAX`` times in a row.
    """
    _check_visible_gpus(settings)
    raise_open_files()
    with open_database(settings) as database:
        # A number alone is not enough: after a restart in a container the new process has the old one's.
        queries = EngineQueries(database, f"{_machine()}:{os.getpid()}:{secrets.token_hex(4)}")
        parts = EngineParts(queries)
        ending = threading.Event()
        _on_signals(ending)
        if not _lead(queries, ending, parts):
            return
        log.info("engine leads", holder=queries.holder)
        if settings.gpus != 0:
            # How many there are is known when Ray has counted them.
            queries.record_gpus(GpuReport(promised=settings.gpus or 0, is_tried=False).model_dump(mode="json"))
        scheduler = Scheduler(settings, queries, parts)
        with Heartbeat(queries, ending, parts), Housekeeper(settings, queries):
            try:
                while not ending.is_set():
                    with _cluster(settings, parts, ending) as cluster:
                        if cluster is not None:
                            _work(scheduler, cluster, queries, ending, parts=parts)
            except LeaseLost as error:
                log.error("lease lost", error=str(error))
            except RayFailed:
                # Another engine, on another machine, need not wait for the lease to run out.
                queries.release_lease()
                raise
            except DatabaseDiskError as error:
                if not ending.is_set():
                    raise
                log.error("engine ends while its database cannot be used: Ray waits for the next one", error=str(error))
                return
        queries.release_lease()
        log.info("engine ended", holder=queries.holder)


def _check_visible_gpus(settings: Settings) -> None:
    """Raises InvalidSettings if CUDA_VISIBLE_DEVICES leaves fewer GPUs than the settings ask for."""
    visible = visible_gpus()
    if visible is not None and settings.gpus is not None and settings.gpus > len(visible):
        raise InvalidSettings(
            f"RETORT_GPUS is {settings.gpus}, but CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} leaves "
            f"{len(visible)}: set RETORT_GPUS to {len(visible)} or less, or unset CUDA_VISIBLE_DEVICES"
        )


def _start_ray(settings: Settings, parts: EngineParts, ending: threading.Event) -> Cluster | None:
    """Ray, found or started; None if the end was requested meanwhile.

    Raises:
        RayFailed: it does not start, however often that is tried.
    """
    for tries in itertools.count(1):
        try:
            return Cluster(settings.data_dir, settings.cpus, settings.gpus)
        except Exception as error:
            # What Ray has said last is many lines.
            said = shortened(" ".join(str(error).split()), 1500)
            reason = f"Ray does not start (it was tried {tries} of {RAY_STARTS_MAX} times): {said}"
            parts.set("ray", reason)
            log.error("Ray does not start", tries=tries, error=str(error))
            if tries == RAY_STARTS_MAX:
                raise RayFailed(
                    f"{reason}. The engine gives up: mend what this names (see `retort doctor`), then start it again"
                ) from error
        if ending.wait(RAY_RETRY_S * 2 ** (tries - 1)):
            break
    return None


@contextlib.contextmanager
def _cluster(settings: Settings, parts: EngineParts, ending: threading.Event) -> Iterator[Cluster | None]:
    """Ray, ended afterwards; not if this engine fails, because its runs can go on until a successor finds them."""
    cluster = _start_ray(settings, parts, ending)
    if cluster is None:
        yield None
        return
    try:
        yield cluster
    except InvalidSettings:
        cluster.close()
        raise
    except Exception:
        cluster.leave()
        raise
    cluster.close()


def _work(
    scheduler: Scheduler, cluster: Cluster, queries: EngineQueries, ending: threading.Event, parts: EngineParts
) -> None:
    """Work until the end, or until Ray is gone.

    Raises:
        LeaseLost: another engine leads, and what runs on the cluster is its.
    """
    with contextlib.closing(GpuWatch(cluster.gpus)) as gpus:
        # What runs on GPUs goes on meanwhile; how many more fit is chosen by their memory.
        gpus.begin()
        gpus.wait(ending)
        is_recovered = False
        while not (is_recovered and ending.wait(TICK_S)):
            if is_recovered and not cluster.is_alive:
                log.error("Ray is gone: starting it again")
                parts.set("ray", "Ray is gone: the engine starts it again, and runs go on from their checkpoints")
                break
            try:
                if not is_recovered:
                    scheduler.recover(cluster, gpus)
                    is_recovered = True
                    parts.set("ray", None)
                    log.info("engine works", cpus=cluster.cpus, gpus=cluster.gpus)
                else:
                    scheduler.tick()
            except DatabaseDiskError as error:
                # Between two transactions, perhaps with half of what it had to read: once the database works again, the
                # engine looks anew at what runs, as a successor would.
                is_recovered = False
                log.error("the database cannot be used: waiting until it can", error=str(error))
                if ending.wait(DATABASE_RETRY_S):
                    break
    # The heartbeat ends an engine, too, that may not touch the runs any more, nor Ray.
    _check_lease(queries)
    if ending.is_set():
        scheduler.put_down(PUT_DOWN_S)
        # Ray is ended next, unless it has become another's meanwhile.
        _check_lease(queries)


def _check_lease(queries: EngineQueries) -> None:
    if not queries.acquire_lease(LEASE_TTL_S, renews=True):
        raise LeaseLost(f"{queries.holder} leaves Ray and its runs alone: another engine has the lease")


def _on_signals(ending: threading.Event) -> None:
    def end(number: int, _: FrameType | None) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        ending.set()

    # Without a supervisor, a SIGHUP is the end of the terminal that the engine was started from.
    signals.handle((*signals.ENDING, signal.SIGHUP), end)


def _lead(queries: EngineQueries, ending: threading.Event, parts: EngineParts) -> bool:
    """Wait until this engine leads; False if the end was requested meanwhile."""
    tell_s = time.monotonic()
    while not ending.is_set():
        lease = queries.lease()
        if queries.acquire_lease(LEASE_TTL_S, _gone(lease.holder), parts.begin):
            return True
        if time.monotonic() >= tell_s:
            tell_s = time.monotonic() + WAITING_LOG_S
            _tell_why_waiting(lease)
        ending.wait(1.0)
    return False


def _tell_why_waiting(lease: Lease) -> None:
    heard_at = None if lease.heartbeat_at is None else lease.heartbeat_at.isoformat()
    known = {"leader": lease.holder, "heartbeat_at": heard_at, "age_s": lease.age_s, "clock": lease.clock}
    silence = lease.silence(LEASE_TTL_S)
    if silence is None:
        log.info("engine waits: another one leads, and was heard of lately", **known)
    else:
        log.warning(f"engine waits for {LEASE_TTL_S:g} s without a heartbeat", reason=silence, **known)


def _gone(holder: str | None) -> str | None:
    """The holder, if it was a process of this machine and has died: then nobody need wait for its lease."""
    machine, _, pid = (holder or "").rpartition(":")[0].rpartition(":")
    has_died = pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists()
    return holder if machine == _machine() and has_died else None


def _machine() -> str:
    """The place where process numbers are unique: two containers may have one name, and number their own processes."""
    return f"{socket.gethostname()}:{os.readlink('/proc/self/ns/pid')}"


class Heartbeat:
    """Renews the lease from a thread of its own, so that a slow tick does not cost it; losing it ends the engine.

    While the disk of the database is full or read-only nobody else can take the lease either: then it goes on trying.
    Now and then it also empties SQLite's write-ahead log, as far as the database is idle; and it notes when the clock
    was set.
    """

    def __init__(self, queries: EngineQueries, ending: threading.Event, parts: EngineParts) -> None:
        self._queries, self._ending, self._parts = queries, ending, parts
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        signals.leave_to_main_thread()
        renewed = checkpointed = time.monotonic()
        clock_s = time.time() - renewed
        while not self._closed.wait(RENEW_S):
            clock_s = self._check_clock(clock_s)
            try:
                if self._queries.acquire_lease(LEASE_TTL_S, renews=True):
                    renewed = time.monotonic()
                    if renewed - checkpointed > CHECKPOINT_S:
                        self._queries.database.checkpoint()
                        checkpointed = renewed
                    continue
                log.error("lease lost: another engine leads", holder=self._queries.holder)
            except DatabaseDiskError as error:
                log.warning("heartbeat failed", error=str(error))
                continue
            except SQLAlchemyError as error:
                log.warning("heartbeat failed", error=str(error))
                if time.monotonic() - renewed < LEASE_TTL_S - RENEW_S:
                    continue
                log.error(
                    "lease about to run out: ending, so that another engine can lead", holder=self._queries.holder
                )
            self._ending.set()
            return

    def _check_clock(self, before_s: float) -> float:
        """Note that the clock was set since ``before_s``, its distance from the monotonic one, which is returned."""
        now_s = time.time() - time.monotonic()
        if abs(ahead_s := now_s - before_s) > AHEAD_MAX_S:
            way = "ahead" if ahead_s > 0 else "back"
            message = f"the clock went {way} by {abs(ahead_s):.0f} s: it was set, or the machine was asleep"
            log.warning("the clock was set", seconds=round(ahead_s))
            # Whoever has the lease by now, the next lines find out.
            with contextlib.suppress(LeaseLost):
                self._parts.note("clock", message)
        return now_s
