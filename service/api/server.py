"""API process: uvicorn around ``create_app``, ended by SIGTERM or SIGINT within its grace period."""

import contextlib
import ctypes
import gc
import signal
import socket
import threading
from collections.abc import Iterator, Sequence

import structlog
import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.api.auth import check_binding, has_keys
from service.api.connections import ACCEPTED_AT_ONCE, Connection
from service.api.dependencies import Context
from service.api.page import add_page, is_page_installed
from service.api.sockets import MESSAGE_BYTES_MAX, Socket
from service.logs import begin_log
from service.operations.data_dir import open_database
from service.operations.open_files import raise_open_files
from service.settings import Settings
from service.webhooks.signature import load_secrets
from workers import signals
from workers.garbage import collection_paused

GRACE_S = 20
# Connections that the kernel keeps until they are accepted.
BACKLOG = 2048
# Of <malloc.h>.
_M_ARENA_MAX = -8
log = structlog.get_logger("service.api.server")


class Server(uvicorn.Server):
    """Server of uvicorn whose open event streams end at shutdown, instead of holding it up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, and SIGHUP, but no SIGINT that this process was started to ignore."""
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread():
                if is_ignored:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                signals.handle([signal.SIGHUP], self.handle_exit)
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, with a longer backlog than the number of connections accepted at once."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                with listener.dup() as same:
                    same.listen(BACKLOG)

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """End the streams, then shut down as uvicorn does."""
        app = self.config.app
        if isinstance(app, FastAPI):
            context: Context = app.state.context
            context.closing.set()
        await super().shutdown(list(sockets) if sockets is not None else None)


def build_server(settings: Settings, *, with_page: bool = False) -> Server:
    """Build a server for these settings that has not begun to listen.

    Args:
        with_page: a process can serve the page of one application only, NiceGUI has one for all.

    Raises:
        UnsafeBinding: the host is reachable from other machines and there is no key.
        BadKeyFile: the API key file cannot be used.
    """
    check_binding(settings)
    app = create_app(settings)
    if with_page:
        add_page(app, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Connection,
        # uvloop comes with NiceGUI; the limits of connections were measured on asyncio's own.
        loop="asyncio",
        # The page's, see ``service.api.middleware.page_session``.
        ws=Socket if with_page else "none",
        ws_max_size=MESSAGE_BYTES_MAX,
        # It costs 300 KB for each socket, and the time of the event loop.
        ws_per_message_deflate=False,
        # asyncio also accepts so many before it does anything else.
        backlog=ACCEPTED_AT_ONCE,
        log_config=None,
        access_log=False,
        server_header=False,
        # uvicorn's default believes whoever calls from this machine.
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


def share_one_heap() -> None:
    """Let threads that begin later allocate from the present heaps; without glibc nothing changes.

    glibc would give them up to eight heaps for each core. What is freed in one of them serves no other, so memory goes
    on growing long after the load does not. Threads of Python take turns anyway, and seldom wait for each other here.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def serve(settings: Settings) -> None:
    """Migrate the database, then serve until SIGTERM or SIGINT.

    Raises:
        UnsafeBinding, BadKeyFile: as ``build_server``.
        InvalidSettings: the hosts of webhooks, or their secret, cannot be used.
        DataDirBusy, NewerDatabase, sqlalchemy.exc.SQLAlchemyError: as ``open_database``.
    """
    begin_log(settings)
    raise_open_files()
    with collection_paused():
        server = build_server(settings, with_page=settings.page and is_page_installed())
    with open_database(settings):
        if not has_keys(settings):
            log.warning("there is no API key, so only this machine may call", host=settings.host)
        if settings.webhook_hosts:
            # What cannot be used ends the start, not the first delivery.
            load_secrets(settings)
        # All that is there now stays: looking through it for garbage would hold up everybody for 0.1 s, often.
        gc.collect()
        gc.freeze()
        server.run()
