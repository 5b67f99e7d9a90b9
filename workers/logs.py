"""Logs of processes, one JSON object a line on standard output; and of each attempt at a run, in its folder.

Light. Ids (``request_id``, ``job_id``, ``run_id``, ``attempt``) come from structlog's context variables, which every
line of a thread or task takes up, whoever writes it.
"""

import contextlib
import json
import logging
import logging.config
import os
import platform
import re
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import BaseModel
from structlog.typing import Processor

from workers.errors import Paused, Stopped
from workers.texts import printable_json, storable

RUN_LOG = "log.jsonl"
# Of a log, all in all.
BYTES_MAX = 1 << 20
# Warnings leave as much for how it ended, and what is routine twice as much for both.
_SPARE_BYTES = 64 << 10
_TEXT_CHARS_MAX = 4000
_LINE_BYTES_MAX = 16 << 10
_ATTEMPT = re.compile(r"a([1-9][0-9]*)")

# Ray gives its logger a handler of its own when it is imported; exporting a student is told step by step.
_QUIET = ("ray", "onnxscript", "onnx_ir")
_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
]


def configure(level: str, quiet: Collection[str] = ()) -> None:
    """Sets up structlog, the standard library's loggers and Python's warnings for this process; safe to repeat.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        quiet: further loggers of which only warnings are wanted.
    """
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": _formatter}},
            "handlers": {"stdout": handler},
            "root": {"handlers": ["stdout"], "level": level.upper()},
            "loggers": {name: {"level": "WARNING", "handlers": [], "propagate": True} for name in (*_QUIET, *quiet)},
        }
    )
    logging.captureWarnings(True)


def _formatter() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.ExceptionRenderer(),
            structlog.processors.JSONRenderer(serializer=_dump_json),
        ],
    )


def ids_of(folder: Path) -> dict[str, str | int]:
    """Ids of the attempt that works in ``.../JOB/RUN/aNUMBER``; none for a folder of another shape."""
    attempt = _ATTEMPT.fullmatch(folder.name)
    if attempt is None:
        return {}
    return {"job_id": folder.parts[-3], "run_id": folder.parts[-2], "attempt": int(attempt[1])}


class RunLog(logging.Handler):
    """The log of one attempt: its events but for single steps, what this process logs or warns of, and how it ended.

    Each line is written as it is said, so a process that is killed leaves what it has said until then. There are
    ``BYTES_MAX`` of them at most, and not being able to write one, on a full disk say, is no reason for a run to end.
    Of several runs in one process each has a log; what is said on behalf of no single one of them is in all.

    Not a RotatingFileHandler: it keeps the newest lines in several files, and this is one file, an artifact, that keeps
    the oldest (who trained where, and the first warnings) and leaves room for the end.

    Args:
        folder: of the attempt, made if need be.
        artifacts: where the files of an attempt that has succeeded are, and then its log.
        writes: whether anything is written at all.
        stage: of the attempt, as ``TrainingTask`` has it.

    Attributes:
        ids: ``job_id``, ``run_id`` and ``attempt``, as far as the folder's name tells.
    """

    def __init__(self, folder: Path, artifacts: Path, writes: bool = True, stage: str = "all") -> None:
        super().__init__()
        self.setFormatter(_formatter())
        self.ids = ids_of(folder)
        self._path, self._artifacts = folder / RUN_LOG, artifacts
        self._is_full = False
        self._stage = stage
        self._file: int | None = None
        if not writes:
            return
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path, flags, mode=0o600)
        logging.root.addHandler(self)
        event = "export begins" if stage == "export" else "attempt begins"
        self._say("info", event, {"host": platform.node(), "pid": os.getpid()})

    def record(self, event: BaseModel) -> None:
        """Write down an event of the attempt, unless it is of a single step."""
        # By way of JSON, which has no NaN.
        told = json.loads(event.model_dump_json())
        kind = told.pop("type")
        if kind == "log":
            self._say(told["level"], told["message"])
        elif kind != "step":
            self._say("info", kind, told)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes down what a logger says, unless that is about another run of this process."""
        about = structlog.contextvars.get_contextvars().get("run_id")
        if about in (None, self.ids.get("run_id")):
            with contextlib.suppress(Exception):
                # What cannot be put into text is no reason to fail either.
                told = json.loads(self.format(record))
                self._say(told.pop("level"), told.pop("event"), told)

    @contextlib.contextmanager
    def ending(self, how: object) -> Iterator[None]:
        """Log lines inside the context are of this attempt, and its last but for the outcome.

        Args:
            how: result.json, or the exception.
        """
        with structlog.contextvars.bound_contextvars(**self.ids):
            yield
        match how:
            case Stopped() | Paused():
                self._say("info", f"attempt {type(how).__name__.lower()}", {"message": str(how)}, spare_bytes=0)
            case BaseException():
                told = {"error_type": type(how).__name__, "message": str(how)}
                self._say("error", "attempt failed", told, spare_bytes=0)
            case _ if self._stage == "train":
                self._say("info", "attempt trained", spare_bytes=0)
            case _:
                self._say("info", "attempt succeeded", spare_bytes=0)
        succeeded = self._file is not None and not isinstance(how, BaseException) and self._stage != "train"
        self.close()
        if succeeded:
            link = self._artifacts / RUN_LOG
            with contextlib.suppress(OSError):
                try:
                    link.hardlink_to(self._path)
                except OSError:
                    # Not every file system has such links.
                    shutil.copyfile(self._path, link)

    def close(self) -> None:
        """Takes nothing down any more; may be called again."""
        logging.root.removeHandler(self)
        with self._guard():
            file, self._file = self._file, None
        if file is not None:
            os.close(file)
        super().close()

    def _say(
        self, level: str, event: str, told: Mapping[str, Any] = MappingProxyType({}), spare_bytes: int | None = None
    ) -> None:
        """One line, if it leaves so many bytes of the log's size; None leaves what its level calls for."""
        if spare_bytes is None:
            spare_bytes = 2 * _SPARE_BYTES if level in ("debug", "info") else _SPARE_BYTES
        at = datetime.now(UTC).isoformat()
        head = {"at": at, "level": level, "event": _shortened(event), **self.ids}
        line = _line({**head, **told, **head})
        if len(line) > _LINE_BYTES_MAX:
            line = _line({**head, "left_out_bytes": len(line)})
        with self._guard(), contextlib.suppress(OSError):
            if self._file is None:
                return
            if os.fstat(self._file).st_size + len(line) <= BYTES_MAX - spare_bytes:
                os.write(self._file, line)
            elif not self._is_full:
                self._is_full = True
                full = "the log is full: from here on it has warnings and the end alone, while there is room for them"
                os.write(self._file, _line({**head, "level": "warning", "event": full}))

    def _guard(self) -> threading.RLock:
        lock = self.lock
        assert lock is not None
        return lock


def _line(told: Mapping[str, Any]) -> bytes:
    texts = {name: _shortened(value) if isinstance(value, str) else value for name, value in told.items()}
    return _dump_json(texts, default=str).encode() + b"\n"


def _dump_json(told: Any, **options: Any) -> str:  # noqa: ANN401  # as ``json.dumps`` takes them
    """One line of ASCII, which a terminal obeys nowhere and every JSON reader can read."""
    return printable_json(json.dumps(storable(told), **options))


def _shortened(text: str) -> str:
    """A text of which the middle is left out if it is long: a traceback says most at its end."""
    if len(text) <= _TEXT_CHARS_MAX:
        return text
    return f"{text[: _TEXT_CHARS_MAX // 4]} ... {text[-_TEXT_CHARS_MAX // 2 :]}"


def speak_for(run_logs: Sequence[RunLog]) -> None:
    """Puts the ids of these attempts into every line of this thread; of several, the one that they share."""
    names = ("job_id", "run_id", "attempt") if len(run_logs) == 1 else ("job_id",)
    ids = run_logs[0].ids
    structlog.contextvars.bind_contextvars(**{name: ids[name] for name in names if name in ids})
