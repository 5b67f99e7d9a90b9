"""The engine process: the lease, the heartbeat, Ray, the end. What it does in between is ``runner``'s."""

import contextlib
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

from service.data_dir import open_database
from service.errors import InvalidSettings, LeaseLost
from service.gpus import GpuReport, GpuWatch
from service.housekeeping import Housekeeper
from service.lease import Lease
from service.records import Records
from service.runner import Engine
from service.settings import Settings
from workers import signals
from workers.cluster import Cluster
from workers.ray_head import visible_gpus

log = structlog.get_logger("retort.engine")

TICK_S = 0.2
RENEW_S = 5.0
LEASE_TTL_S = 30.0
CHECKPOINT_S = 30.0
# From the signal to the end: runs leave a checkpoint at their next batch; an evaluation may have to end first.
PUT_DOWN_S = 30.0
WAITING_LOG_S = 60.0


def run_engine(settings: Settings) -> None:
    """The engine process: wait for the lease, find or start Ray, work until a signal, leave all resumable.

    Ray is a process of its own. When it dies, a new one is started here and every run goes on from its checkpoint; when
    this process dies, its successor finds Ray with the runs in it.

    Raises:
        DataDirBusy, NewerDatabase, sqlalchemy.exc.SQLAlchemyError: as ``open_database``.
        InvalidSettings: no run could ever start, or CUDA may see fewer GPUs than are asked for.
        HeadFailed: Ray does not start.
    """
    _check_visible_gpus(settings)
    with open_database(settings) as database:
        # A number alone is not enough: after a restart in a container the new process has the old one's.
        records = Records(database, f"{_machine()}:{os.getpid()}:{secrets.token_hex(4)}")
        ending = threading.Event()
        _on_signals(ending)
        if not _lead(records, ending):
            return
        log.info("engine leads", holder=records.holder)
        if settings.gpus != 0:
            # How many there are is known when Ray has counted them.
            records.record_gpus(GpuReport(promised=settings.gpus or 0, is_tried=False).model_dump(mode="json"))
        engine = Engine(settings, records)
        with Heartbeat(records, ending), Housekeeper(settings, records):
            try:
                while not ending.is_set():
                    with _cluster(settings) as cluster:
                        _work(engine, cluster, records, ending)
            except LeaseLost as error:
                log.error("lease lost", error=str(error))
        records.release_lease()
        log.info("engine ended", holder=records.holder)


def _check_visible_gpus(settings: Settings) -> None:
    """Raises InvalidSettings if CUDA_VISIBLE_DEVICES leaves fewer GPUs than the settings ask for."""
    visible = visible_gpus()
    if visible is not None and settings.gpus is not None and settings.gpus > len(visible):
        raise InvalidSettings(
            f"RETORT_GPUS is {settings.gpus}, but CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} leaves "
            f"{len(visible)}: set RETORT_GPUS to {len(visible)} or less, or unset CUDA_VISIBLE_DEVICES"
        )


@contextlib.contextmanager
def _cluster(settings: Settings) -> Iterator[Cluster]:
    """Ray, ended afterwards; not if this engine fails, because its runs can go on until a successor finds them."""
    cluster = Cluster(settings.data_dir, settings.cpus, settings.gpus)
    try:
        yield cluster
    except InvalidSettings:
        cluster.close()
        raise
    except Exception:
        cluster.leave()
        raise
    cluster.close()


def _work(engine: Engine, cluster: Cluster, records: Records, ending: threading.Event) -> None:
    """Until the end, or until Ray is gone.

    Raises:
        LeaseLost: another engine leads, and what runs on the cluster is its.
    """
    with contextlib.closing(GpuWatch(cluster.gpus)) as gpus:
        # What runs on GPUs goes on meanwhile; how many more fit is chosen by their memory.
        gpus.begin()
        gpus.wait(ending)
        engine.recover(cluster, gpus)
        log.info("engine works", cpus=cluster.cpus, gpus=cluster.gpus)
        while not ending.wait(TICK_S):
            if not cluster.is_alive:
                log.error("Ray is gone: starting it again")
                break
            engine.tick()
    # The heartbeat ends an engine, too, that may not touch the runs any more, nor Ray.
    _check_lease(records)
    if ending.is_set():
        engine.put_down(PUT_DOWN_S)
        # Ray is ended next, unless it has become another's meanwhile.
        _check_lease(records)


def _check_lease(records: Records) -> None:
    if not records.acquire_lease(LEASE_TTL_S):
        raise LeaseLost(f"{records.holder} leaves Ray and its runs alone: another engine has the lease")


def _on_signals(ending: threading.Event) -> None:
    def end(number: int, _: FrameType | None) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        ending.set()

    # Without a supervisor, a SIGHUP is the end of the terminal that the engine was started from.
    signals.handle((*signals.ENDING, signal.SIGHUP), end)


def _lead(records: Records, ending: threading.Event) -> bool:
    """Wait until this engine leads; False if it was told to end meanwhile."""
    tell_s = time.monotonic()
    while not ending.is_set():
        lease = records.lease()
        if records.acquire_lease(LEASE_TTL_S, _gone(lease.holder)):
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
    """Where a process has its number: two containers may have one name, and number their own processes."""
    return f"{socket.gethostname()}:{os.readlink('/proc/self/ns/pid')}"


class Heartbeat:
    """Renews the lease from a thread of its own, so that a slow tick does not cost it; losing it ends the engine.

    Now and then it also empties SQLite's write-ahead log, as far as the database is idle.
    """

    def __init__(self, records: Records, ending: threading.Event) -> None:
        self._records, self._ending = records, ending
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
        while not self._closed.wait(RENEW_S):
            try:
                if self._records.acquire_lease(LEASE_TTL_S):
                    renewed = time.monotonic()
                    if renewed - checkpointed > CHECKPOINT_S:
                        self._records.database.checkpoint()
                        checkpointed = renewed
                    continue
                log.error("lease lost: another engine leads", holder=self._records.holder)
            except SQLAlchemyError as error:
                log.warning("heartbeat failed", error=str(error))
                if time.monotonic() - renewed < LEASE_TTL_S - RENEW_S:
                    continue
                log.error(
                    "lease about to run out: ending, so that another engine can lead", holder=self._records.holder
                )
            self._ending.set()
            return
