"""Options of ``retort datasets add``: the fields of every registered dataset kind."""

import inspect
from collections.abc import Callable, Iterator
from types import GenericAlias
from typing import Any, TypeVar, cast

import typer

from workers.data.dataset_kind import Option
from workers.data.kinds.registry import KINDS, kind_classes

KIND_HELP = f"{', '.join(KINDS)}."
# One paragraph for each kind, below the options.
EPILOG = "\n\n".join(f"{kind}: {cls.kinds[kind].replace('`', '')}." for kind, cls in KINDS.items())
_TYPES = {"integer": int, "number": float, "boolean": bool}
CommandT = TypeVar("CommandT", bound=Callable[..., None])


def with_dataset_fields(command: CommandT) -> CommandT:
    """Give a command that takes ``**fields`` an option for each field; one that is not given is None."""
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    cast(Any, command).__signature__ = signature.replace(parameters=[*own, *_parameters()])
    return command


def _parameters() -> Iterator[inspect.Parameter]:
    schemas = {cls: cls.model_json_schema()["properties"] for cls in kind_classes()}
    # Of a field that several kinds have, the first one's documentation.
    fields = {name: (option, schemas[cls][name]) for cls in reversed(schemas) for name, option in cls.options.items()}
    for name, (option, schema) in fields.items():
        yield _parameter(name, option, schema)


def _parameter(name: str, option: Option, schema: dict[str, Any]) -> inspect.Parameter:
    [variant] = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    metavar = option.metavar or "|".join(map(str, variant.get("enum", ()))) or None
    default = typer.Option(None, metavar=metavar, help=option.help)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_type(variant) | None)


def _type(schema: dict[str, Any]) -> Any:  # noqa: ANN401 - a type for typer
    if "prefixItems" in schema:
        return GenericAlias(tuple, tuple(_type(each) for each in schema["prefixItems"]))
    return _TYPES.get(schema.get("type", ""), str)
