"""Generated code of the client, which ``python -m tests.repository.documents`` writes.

``service/client/documents.py`` comes from the schemas of the API. The client that waits by blocking comes from the one
in ``service/client/asynchronous``, word by word: there each method is written, once.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from service.api import app as app  # which loads every schema
from service.api.schemas.base import Document
from service.db.states import State

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "service/client"
SOURCES = CLIENT / "asynchronous"
# In this order.
BLOCKING = (
    (r"\basync (def|for|with) ", r"\1 "),
    (r"\bawait ", ""),
    (r"\banyio\.to_thread\.run_sync\(([\w.]+), ", r"\1("),
    (r"\banyio\b", "time"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\baclosing\b", "closing"),
    (r"\.a(close|read|iter_bytes|iter_raw)\(", r".\1("),
    (r"\bservice\.client\.asynchronous\b", "service.client"),
)
HEAD = "# Generated from {} by python -m tests.repository.documents: change it there.\n"


def generated() -> dict[Path, str]:
    """Every generated module with its text."""
    modules = {CLIENT / path.name: _blocking(path) for path in sorted(SOURCES.glob("*.py")) if path.stem != "__init__"}
    return {**modules, CLIENT / "documents.py": _documents()}


def _blocking(path: Path) -> str:
    """Text of the module that blocks where the one at ``path`` awaits."""
    text = path.read_text()
    for pattern, replacement in BLOCKING:
        text = re.sub(pattern, replacement, text)
    return _formatted(HEAD.format(path.relative_to(CLIENT)) + text)


def _formatted(text: str) -> str:
    """Text as ruff sorts and formats it."""
    name = ["--stdin-filename", str(CLIENT / "generated.py"), "-"]
    for command in (["check", "--quiet", "--fix-only", "--select", "I,F811"], ["format", "--quiet"]):
        line = [sys.executable, "-m", "ruff", *command, *name]
        text = subprocess.run(line, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def _documents() -> str:
    """Text of the documents that the client names: a class for each, after those that it is made of."""
    models = {model.__name__: model for model in _subclasses(Document)}
    named = re.findall(r"\bdocuments\.(\w+)", "".join(path.read_text() for path in SOURCES.glob("*.py")))
    written: dict[type[BaseModel], str] = {}
    for name in sorted(set(named)):
        if name not in models:
            raise LookupError(f"{SOURCES} names documents.{name}, but service/api/schemas has no such document")
        _write(models[name], written)
    states = ", ".join(f'"{state}"' for state in State)
    head = f'''{HEAD.format("service/api/schemas")}"""Documents of the API as the client returns them, a class each.

``/openapi.json`` says what a field means.
"""

from typing import Any, Literal

from service.client.typed_document import TypedDocument

State = Literal[{states}]
'''
    return _formatted("\n\n".join([head, *written.values()]))


def _subclasses(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def _write(model: type[BaseModel], written: dict[type[BaseModel], str]) -> None:
    """Add the class of a document to those that are written, after those that it is made of."""
    if model in written:
        return
    bases = [base for base in model.__bases__ if issubclass(base, BaseModel) and base is not Document]
    for base in bases:
        _write(base, written)
    inherited = {name for base in bases for name in base.model_fields}
    hints = get_type_hints(model)
    own = {name: _annotation(hints[name], written) for name in model.model_fields if name not in inherited}
    hidden = own.keys() & dir(dict)
    assert not hidden, f"{model.__name__}: a dictionary has {hidden} already, so these could be no attributes"
    names = ", ".join(base.__name__ for base in bases) or "TypedDocument"
    fields = "".join(f"    {name}: {annotation}\n" for name, annotation in own.items())
    written[model] = f'class {model.__name__}({names}):\n    """{model.__doc__}"""\n\n{fields}'


def _annotation(hint: Any, written: dict[type[BaseModel], str]) -> str:  # noqa: ANN401  # a type in any form
    """Type of a field as JSON has it; what is none of the API's own documents is any object."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotation(arguments[0], written)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_annotation(each, written) for each in arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (list, tuple):
        return f"list[{_annotation(arguments[0], written)}]"
    if origin is dict:
        return f"dict[{', '.join(_annotation(each, written) for each in arguments)}]"
    if isinstance(hint, type) and issubclass(hint, Document):
        _write(hint, written)
        return hint.__name__
    if hint in (int, float, bool, str):
        return str(hint.__name__)
    return {State: "State", NoneType: "None", datetime: "str"}.get(hint) or _other(hint)


def _other(hint: object) -> str:
    return "dict[str, Any]" if isinstance(hint, type) and issubclass(hint, BaseModel) else "Any"
