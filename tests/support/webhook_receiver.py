"""A receiver of webhooks: a real HTTP server that keeps what it was sent, and answers as it is told."""

import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Message:
    """A request that came: its path, headers in lower case, and body."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What a test knows of its receiver; ``answers`` is a status for each request to come, then 204."""

    port: int
    messages: queue.Queue[Message] = field(default_factory=queue.Queue)
    answers: list[int] = field(default_factory=list)
    before_answer: Callable[[], object] = lambda: None

    @property
    def origin(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def next(self) -> Message:
        """The next message, which is waited for."""
        return self.messages.get(timeout=20)


@contextmanager
def receiving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    """A receiver on a free port; with a ``context``, it speaks TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            receiver.messages.put(Message(self.path, headers, body))
            receiver.before_answer()
            status = receiver.answers.pop(0) if receiver.answers else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{receiver.origin}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, port), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is part of the tests
        receiver = Receiver(server.server_address[1])
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
