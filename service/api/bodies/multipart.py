"""Multipart upload from the socket to a file: never held in memory, hashed on the way, removed on failure.

The file lies as ``.incoming-*`` in the folder it is meant for, under a lock that its process holds: one that nobody
holds was left by a process that died, and ``sweep`` removes it.

The parser is python-multipart's. streaming-form-data 2.1 was measured instead and is worse: 1.9 times the time for
random bytes and 176 times (40 ms/MiB) for a file of carriage returns, it accepts a body that is cut off, and bounds
no headers.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio.to_thread
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.api.bodies.upload_sizes import BUFFER_BYTES, UploadLimit
from service.errors import InvalidRequest, MalformedBody, TooLarge
from workers.errors import InvalidText, UnknownName
from workers.text_files import decode_text

INCOMING = ".incoming-"
FILE_FIELD = "file"
DATA_FIELD = "data"
BOUNDARY_MAX_BYTES = 70  # RFC 2046, 5.1.1
TEXT_MAX_BYTES = 64 << 10
FILE_NAME_MAX = 255


@dataclass(frozen=True)
class Upload:
    """Upload that has arrived whole.

    Attributes:
        path: of the file; whoever wants to keep it renames it.
        sha256: of its bytes, 64 hex digits.
        fields: the text fields that came with it.
        data: of a second file, ``data``; None if there was none.
        data_name: the name that the client gives that file, without folders; None without one.
    """

    path: Path
    sha256: str
    size_bytes: int
    fields: Mapping[str, str]
    data: Path | None = None
    data_name: str | None = None


@asynccontextmanager
async def receive(
    request: Request,
    folder: Path,
    *,
    text_fields: Mapping[str, int],
    limit: UploadLimit,
    check_room: Callable[[], None],
    before_file: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> AsyncIterator[Upload]:
    """Receive a multipart/form-data request with a file; it is removed at the end unless it was renamed.

    A second file may come, as the field ``data``; it is removed, too.

    Args:
        folder: where the files are written; on the file system on which they are to stay.
        text_fields: the other fields that may come, with the most bytes of each.
        limit: of both files together.
        check_room: called for every BUFFER_BYTES, in a thread; raises when no more may be written.
        before_file: called, in a thread, with the text fields that have come before the field ``file``; raises where
            they are reason enough to refuse it.

    Raises:
        MalformedBody: not multipart/form-data, or cut off.
        InvalidRequest: no file, a field twice, or text that is not UTF-8.
        UnknownName: a field that is not expected.
        TooLarge: the files or a text field are over their limit.
        SlowBody: it stalls, see ``service.api.bodies.limits``.
        OSError: it cannot be written (ENOSPC: the disk is full).
    """
    boundary = _boundary(request.headers.get("content-type", ""), limit.example)
    with incoming_file(folder) as (path, file), ExitStack() as opened:
        parts = _Parts(
            file,
            lambda: opened.enter_context(incoming_file(folder)),
            boundary,
            text_fields=text_fields,
            limit=limit,
            before_file=before_file,
        )
        buffer = bytearray()
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                await anyio.to_thread.run_sync(check_room)
                await anyio.to_thread.run_sync(parts.feed, bytes(buffer))
                buffer.clear()
        await anyio.to_thread.run_sync(parts.feed, bytes(buffer))
        await anyio.to_thread.run_sync(parts.finish)
        yield Upload(
            path,
            parts.digest.hexdigest(),
            parts.size_bytes,
            parts.texts,
            data=parts.data_path,
            data_name=parts.data_name,
        )


def sweep(folder: Path) -> int:
    """Remove the files that processes have left in ``folder`` that died while receiving; return their number."""
    swept = 0
    for path in folder.glob(f"{INCOMING}*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            swept += 1
    return swept


@contextmanager
def incoming_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file that is removed at the end, unless it was renamed, or by ``sweep`` if this process dies before."""
    path = folder / f"{INCOMING}{uuid.uuid4().hex}"
    with path.open("xb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield path, file
        finally:
            path.unlink(missing_ok=True)


def _boundary(content_type: str, example: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= BOUNDARY_MAX_BYTES:
        raise MalformedBody(
            f"the Content-Type is {content_type!r:.200}, an upload is multipart/form-data with a boundary of at most "
            f"{BOUNDARY_MAX_BYTES} bytes: `curl -F file=@{example}` makes one"
        )
    return boundary


def _file_name(given: bytes) -> str | None:
    """Last part of a client's path of a file; None if it has none that can be shown."""
    name = given.decode(errors="replace").replace("\\", "/").rsplit("/", 1)[-1]
    return name if name.isprintable() and 0 < len(name) <= FILE_NAME_MAX else None


class _Parts:
    """Parts of one body: the files' bytes go to disk, the text fields into a dictionary.

    ``digest`` and ``size_bytes`` are of the field ``file``.
    """

    def __init__(
        self,
        file: IO[bytes],
        open_data: Callable[[], tuple[Path, IO[bytes]]],
        boundary: bytes,
        *,
        text_fields: Mapping[str, int],
        limit: UploadLimit,
        before_file: Callable[[Mapping[str, str]], None],
    ) -> None:
        self.texts: dict[str, str] = {}
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.data_path: Path | None = None
        self.data_name: str | None = None
        self._files = {FILE_FIELD: file}
        self._open_data = open_data
        self._text_fields = text_fields
        self._received_bytes = 0
        self._limit = limit
        self._before_file = before_file
        self._seen: set[str] = set()
        self._name = ""
        self._text = bytearray()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value_data,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise MalformedBody(f"the multipart body cannot be read: {error}") from error

    def finish(self) -> None:
        """Check at the end that the body was whole, and make the files durable."""
        if not self._complete:
            raise MalformedBody("the multipart body ends before its last boundary")
        if FILE_FIELD not in self._seen:
            raise InvalidRequest("the upload has no file: send it as the field `file`", "#/file")
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def _part_begin(self) -> None:
        self._disposition = b""
        self._text.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        # The parser bounds the size and number of headers.
        self._header_name += data[start:end]

    def _header_value_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        allowed = {*self._text_fields, FILE_FIELD, DATA_FIELD}
        if self._name not in allowed:
            raise UnknownName("form field", self._name, allowed)
        if self._name in self._seen:
            raise InvalidRequest(f"the field {self._name!r} comes twice", f"#/{self._name}")
        self._seen.add(self._name)
        if self._name == FILE_FIELD:
            self._before_file(self.texts)
        if self._name == DATA_FIELD:
            self.data_path, self._files[DATA_FIELD] = self._open_data()
            self.data_name = _file_name(options.get(b"filename", b""))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        size = end - start
        if self._name in self._text_fields:
            most = self._text_fields[self._name]
            if len(self._text) + size > most:
                raise TooLarge(f"the field {self._name!r} has more than the {most} bytes allowed")
            self._text += data[start:end]
            return
        self._received_bytes += size
        if self._received_bytes > self._limit.max_bytes:
            both = "the file has" if self.data_path is None else "the files have"
            raise TooLarge(f"{both} more than the {self._limit.max_bytes} bytes allowed{self._limit.advice}")
        piece = memoryview(data)[start:end]
        if self._name == FILE_FIELD:
            self.size_bytes += size
            self.digest.update(piece)
        self._files[self._name].write(piece)

    def _part_end(self) -> None:
        if self._name not in self._text_fields:
            return
        try:
            self.texts[self._name] = decode_text(bytes(self._text), f"the field {self._name!r}")
        except InvalidText as error:
            raise InvalidRequest(str(error), f"#/{self._name}") from error

    def _end(self) -> None:
        self._complete = True
