"""The API's description, and what importing it loads."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.service_helpers import Api

pytest_plugins = ["tests.service_fixtures"]
HEAVY = ("torch", "torchvision", "ray", "onnxruntime", "sklearn", "PIL")


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
    code = f"import sys, service.app, service.server; print([name for name in {HEAVY} if name in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
