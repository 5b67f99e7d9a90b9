"""The generated code of the client is what its sources make, and the clients have the same methods."""

import inspect
import re

import pytest

from service.client import AsyncClient, Client
from service.client import documents as client_documents
from service.client.asynchronous import job as asynchronous_job
from service.client.typed_document import TypedDocument
from tests.repository.client_code import CLIENT, SOURCES, generated


def test_generated_code_of_the_client_is_up_to_date() -> None:
    stale = [path.name for path, text in generated().items() if not path.exists() or path.read_text() != text]
    assert not stale, "run: python -m tests.repository.documents"
    sources = {path.name for path in SOURCES.glob("*.py")} - {"__init__.py"}
    assert {path.name for path in generated()} == sources | {"documents.py"}


def test_blocking_client_awaits_nothing_and_has_the_methods_of_the_other() -> None:
    for name in (path.name for path in SOURCES.glob("[!_]*.py")):
        assert not re.search(
            r"\b(async|await|anyio|Async\w+|__a(?:enter|exit|iter|next)__)\b", (CLIENT / name).read_text()
        ), name

    def methods(cls: type) -> dict[str, list[str]]:
        found = inspect.getmembers(cls, inspect.isfunction)
        return {name: [*inspect.signature(each).parameters] for name, each in found if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) > 30


@pytest.mark.parametrize("module", [client_documents, asynchronous_job])
def test_no_field_of_a_document_has_the_name_of_a_method(module: object) -> None:
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, TypedDocument)]
    assert len(classes) > 2
    for cls in classes:
        fields = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        assert not fields & set(dir(cls)), cls
