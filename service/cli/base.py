"""Shared parts of the commands: the session of the command line, input files, output, error text."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import RenderableType

from service.cli import render
from service.client.client import Client
from service.client.transport import Document
from service.errors import ServiceError
from workers.text_files import read_text
from workers.texts import printable_json

_OWN_PACKAGES = frozenset({"store", "workers", "service"})
# Modules that the extra ``engine`` brings; those that are neither here nor the client's own come with ``server``.
_OF_THE_ENGINE = frozenset(
    {"PIL", "onnxruntime", "onnxscript", "ray", "simplejpeg", "tensorboardX", "torch", "torchvision"}
)


_OF_THE_PLOTS = frozenset({"matplotlib"})


class CommandFailed(ServiceError, RuntimeError):
    """A command ran, and its end is no success."""


class BadInput(ServiceError, ValueError):
    """A file or text from the user cannot be read as its type."""


@dataclass(frozen=True)
class CliSession:
    """Session of one command line: its global options.

    Attributes:
        url: address of the service.
        api_key_file: its first line is the key; None sends none.
        as_json: print documents instead of tables.
    """

    url: str
    api_key_file: Path | None
    as_json: bool

    def with_json(self) -> "CliSession":
        """The same, printing documents."""
        return replace(self, as_json=True)

    def client(self, url: str | None = None) -> Client:
        """Client of the service that the options name, or of the one at ``url`` with their key."""
        return Client(url or self.url, api_key=self._api_key())

    def _api_key(self) -> str | None:
        if self.api_key_file is None:
            return None
        lines = read_text(self.api_key_file).splitlines()
        key = lines[0].strip() if lines else ""
        if not key:
            raise BadInput(f"the first line of {self.api_key_file} is empty; it has to be the key")
        return key

    def show(self, document: object, draw: Callable[[], RenderableType]) -> None:
        """Print a document as JSON or as ``draw`` shows it, by the options."""
        if self.as_json:
            sys.stdout.write(printable_json(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")
        else:
            render.console().print(draw())


def session(context: typer.Context) -> CliSession:
    """Session that the callback of ``retort`` has made."""
    found = context.find_object(CliSession)
    assert found is not None
    return found


def read_json(path: Path) -> Document:
    """Read a JSON object from a file.

    Raises:
        BadInput: it is no JSON object; the message says where.
        InvalidText: it is not UTF-8.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, what: str) -> Document:
    """Parse a JSON object; ``what`` names it in the message of BadInput."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{what} holds a JSON {type(value).__name__}, it has to be an object")
    return value


def json_or_name(text: str, option: str) -> Document | str:
    """Parse a JSON object, or take a name as it is; ``option`` names it in the message of BadInput."""
    return parse_json(text, option) if text.lstrip().startswith("{") else text


def sentence(error: Exception, *, needs_engine: bool = False) -> str:
    """Sentence about an exception for a person, without where it happened.

    Args:
        needs_engine: the command needs the engine's packages, whichever of them it misses first.
    """
    if isinstance(error, ValidationError):
        return "; ".join(f"{error.title} {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    if type(error).__module__.partition(".")[0] in _OWN_PACKAGES:
        return str(error)
    if type(error).__module__.startswith("sqlalchemy."):
        # The driver's message, without the statement and the link to a manual.
        return f"the database cannot be used: {getattr(error, 'orig', None) or error}"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in _OWN_PACKAGES:
        module = error.name.partition(".")[0]
        extra = "engine" if needs_engine or module in _OF_THE_ENGINE else "server"
        extra = "plots" if module in _OF_THE_PLOTS else extra
        return (
            f"this command needs the package {module}, which is not installed here: run it where the service runs, or "
            f"install Retort with its extra `{extra}` (pip install 'retort[{extra}]')"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return error.strerror + where
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (`retort --traceback ...` shows where)"
