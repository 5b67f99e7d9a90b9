"""The API's description, and what importing it loads."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.support.service_helpers import Api
from workers.spec import Config

pytest_plugins = ["tests.support.service_fixtures"]
HEAVY = ("torch", "torchvision", "ray", "onnxruntime", "scipy", "sklearn", "PIL")


def references(value: object) -> Iterator[str]:
    """Every $ref below a value."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_operation_is_described_and_every_reference_leads_somewhere(shared_api: Api) -> None:
    """An id, words, a tag, what it answers, and its problems."""
    document: dict[str, Any] = shared_api.client.get("/openapi.json").json()
    operations = [op for item in document["paths"].values() for op in item.values()]
    assert len({op["operationId"] for op in operations}) == len(operations) >= 25
    for op in operations:
        assert op["summary"], op
        assert op["description"], op
        assert op["tags"], op
        good = [answer for status, answer in op["responses"].items() if status < "300"]
        assert good, op
        problems = {status: answer for status, answer in op["responses"].items() if status >= "400"}
        assert "500" in problems
        for status, answer in problems.items():
            if status != "503" or op["operationId"] != "get_readiness":
                assert list(answer["content"]) == ["application/problem+json"], (op["operationId"], status)
    for reference in references(document):
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_importing_the_api_loads_nothing_heavy() -> None:
    """It takes jobs; others do the work."""
    code = f"import sys, service.api.app, service.api.server; print([name for name in {HEAVY} if name in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


# What workers tell each other; some of it is there only if another test has imported it.
NEVER_OF_A_REQUEST = frozenset(
    {
        *("CachePlan", "CachesTask", "EncodingCheck", "InferenceTask", "RunSpec", "TeacherAccuracy", "TrainingTask"),
        *("ImportTask", "ImportedCache", "UploadedLogits"),
    }
)


def derived(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Every class below this one."""
    for cls in base.__subclasses__():
        yield cls
        yield from derived(cls)


def wrong_values(schema: Mapping[str, Any]) -> list[object]:
    """What a lax reading would take for a value of this field: text or a truth for a number, a number for a truth."""
    kinds = [schema, *schema.get("anyOf", ())]
    types = {kind.get("type") for kind in kinds}
    if types & {"array", "object", "string"} or any("$ref" in kind for kind in kinds):
        return []
    if "boolean" in types:
        return [1, "true"]
    return [True, "1"] if types & {"integer", "number"} else []


def test_a_value_of_another_type_is_refused_wherever_a_request_may_hold_it() -> None:
    """The document says number, so "1" and true are none."""
    checked = 0
    for cls in {cls for cls in derived(Config) if cls.__module__.startswith(("service", "workers"))}:
        if cls.__name__ in NEVER_OF_A_REQUEST:
            continue
        for field in cls.model_fields.values():
            metadata = (field.annotation, *field.metadata)
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[metadata] if field.metadata else field.annotation)
            for value in wrong_values(adapter.json_schema()):
                with pytest.raises(ValidationError):
                    adapter.validate_python(value)
                checked += 1
    assert checked > 100
