"""A TCP proxy whose connections break where a test wants them to: the network, at its worst, repeatably."""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

_CHUNK_BYTES = 4096


class CuttingProxy:
    """Passes bytes on between clients and a server on the loopback address.

    Args:
        port: of the server.
        budgets: how many bytes of answers the first, second ... connection lets through before it is cut; later
            connections are not cut.

    Attributes:
        url: where clients connect.
        passed: bytes of answers that went through, per connection.
    """

    def __init__(self, port: int, budgets: Sequence[int]) -> None:
        self._port = port
        self._budgets = list(budgets)
        self.passed: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            _cut(end)
        for thread in self._threads:
            thread.join(10)

    def _run(self, target: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            number = len(self.passed)
            self.passed.append(0)
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            self._run(self._pass_requests, client, server)
            self._run(self._pass_answers, client, server, number)

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                server.sendall(data)
        _cut(server)

    def _pass_answers(self, client: socket.socket, server: socket.socket, number: int) -> None:
        budget = self._budgets[number] if number < len(self._budgets) else None
        with suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                left = len(data) if budget is None else budget - self.passed[number]
                client.sendall(data[:left])
                self.passed[number] += len(data[:left])
                if left < len(data):
                    break
        _cut(server)
        _cut(client)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
