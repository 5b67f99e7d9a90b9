"""The engine process: Ray, the lease, the heartbeat, the end. What it does in between is ``runner``'s."""

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database, upgrade_to_head
from service.records import Records
from service.runner import Engine
from service.settings import Settings
from workers.cluster import Cluster

log = structlog.get_logger("retort.engine")

TICK_S = 0.2
RENEW_S = 5.0
LEASE_TTL_S = 30.0


def run_engine(settings: Settings) -> None:
    """The engine process: start Ray, wait for the lease, work until SIGTERM or SIGINT, leave everything resumable.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached or migrated.
        InvalidSettings: no run could ever start.
    """
    settings.make_folders()
    upgrade_to_head(settings.database)
    database = Database(settings.database)
    records = Records(database)
    holder = f"{socket.gethostname()}:{os.getpid()}"
    ending = threading.Event()
    with contextlib.closing(database):
        _on_signals(ending)
        # Before the lease: who leads is asked for work, and Ray takes seconds to start.
        with contextlib.closing(Cluster(settings.cpus, settings.gpus)) as cluster:
            # ray.init puts handlers of its own in place.
            _on_signals(ending)
            engine = Engine(settings, records, cluster, holder)
            if not _lead(records, holder, ending):
                return
            log.info("engine leads", holder=holder, cpus=cluster.cpus, gpus=cluster.gpus)
            with Heartbeat(records, holder, ending):
                engine.recover()
                # At the end the cluster goes, and with it every task; the next engine finds the checkpoints.
                while not ending.wait(TICK_S):
                    engine.tick()
        records.release_lease(holder)
        log.info("engine ended", holder=holder)


def _on_signals(ending: threading.Event) -> None:
    def end(number: int, _: FrameType | None) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _lead(records: Records, holder: str, ending: threading.Event) -> bool:
    """Wait until this engine leads; False if it was told to end meanwhile."""
    while not records.acquire_lease(holder, LEASE_TTL_S, _gone(records.lease_holder())):
        if ending.wait(1.0):
            return False
    return not ending.is_set()


def _gone(holder: str | None) -> str | None:
    """The holder, if it was a process of this machine and has died: then nobody need wait for its lease."""
    host, _, pid = (holder or "").rpartition(":")
    return holder if host == socket.gethostname() and not Path(f"/proc/{pid}").exists() else None


class Heartbeat:
    """Renews the lease from a thread of its own, so that a slow tick does not cost it; losing it ends the engine."""

    def __init__(self, records: Records, holder: str, ending: threading.Event) -> None:
        self._records, self._holder, self._ending = records, holder, ending
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._closed.wait(RENEW_S):
            try:
                if self._records.acquire_lease(self._holder, LEASE_TTL_S):
                    renewed = time.monotonic()
                    continue
                log.error("lease lost: another engine leads", holder=self._holder)
            except SQLAlchemyError as error:
                log.warning("heartbeat failed", error=str(error))
                if time.monotonic() - renewed < LEASE_TTL_S - RENEW_S:
                    continue
                log.error("lease about to run out: ending, so that another engine can lead", holder=self._holder)
            self._ending.set()
            return
