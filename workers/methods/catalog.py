"""Catalog of the methods that a client can ask for, with their descriptions. No torch here.

A method is written as a preset's name or an object that overrides its fields; ``custom`` takes any terms outright.

To add a method:

1. a temperature policy is one file in ``policies``, its config class and its function, and one entry in
   ``policies/catalog.py``. From here on it can be posted inside ``custom``, is documented by ``GET /v1/methods``, and
   can be previewed;
2. a loss is one function in ``objective/distillation.py``, its entry in ``LOSSES`` there, and one config class in
   ``losses.py`` whose ``kind`` is the entry's key;
3. if a paper gave it a name, one preset class in a module of ``papers``; ``tests/golden`` proves it.

A temperature that only needs arithmetic over the statistics needs none of this: post an ``expression`` policy.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from workers.errors import InvalidMethod, UnknownName
from workers.methods.combined import PRESETS
from workers.methods.losses import LOSS_CLASSES
from workers.methods.papers.base import Family, Preset
from workers.methods.policies.catalog import POLICY_CLASSES
from workers.spec import MethodPart

# ----------------------------------------------------------------------------------------------------------- parsing


def parse_method(value: object) -> Preset:
    """Parse a method as a client writes it.

    Args:
        value: ``"kd"``, ``{"preset": "kd", "temperature": 2}``, or a preset already made.

    Raises:
        UnknownName: no such preset, parameter, policy or loss; the message gives the nearest.
        InvalidMethod: a value outside its domain, named with what is allowed.
    """
    if isinstance(value, Preset):
        return value
    data = {"preset": value} if isinstance(value, str) else value
    if not isinstance(data, Mapping) or not isinstance(data.get("preset"), str):
        raise InvalidMethod(
            f'a method is a name or an object with "preset", such as "kd" or {{"preset": "kd", "temperature": 2}}; '
            f"got {value!r:.200}"
        )
    if data["preset"] not in PRESETS:
        raise UnknownName("method", data["preset"], PRESETS)
    try:
        return PRESETS[data["preset"]].model_validate(data)
    except ValidationError as error:
        problem = _explain(data["preset"], error)
    # Outside of the block, as everywhere under validation: an exception that has pydantic's as its cause or context is
    # never freed, with all that was tried, for the garbage collector cannot see what pydantic's refers to.
    raise InvalidMethod(problem)


def _explain(name: str, error: ValidationError) -> str:
    """Write one sentence per mistake, at most three: where, what was given, what is allowed."""
    sentences = []
    for item in error.errors(include_url=False)[:3]:
        where = ".".join(str(step) for step in item["loc"])
        allowed = item["msg"].removeprefix("Value error, ")
        sentences.append(f"{where} is {item['input']!r:.80}: {allowed}" if where else allowed)
    return f"method {name!r}: " + "; ".join(sentences)


if TYPE_CHECKING:
    MethodChoice = Preset
else:
    MethodChoice = Annotated[
        reduce(or_, PRESETS.values()),
        Field(discriminator="preset"),
        BeforeValidator(parse_method, json_schema_input_type=reduce(or_, (*PRESETS.values(), Literal[tuple(PRESETS)]))),
    ]
    """The type of a method field in a larger model; reads what ``parse_method`` reads."""


# ----------------------------------------------------------------------------------------------------- documentation


def describe() -> list[dict[str, Any]]:
    """Describe every preset for ``GET /v1/methods``: formula, paper, defaults per family, needs, JSON Schema."""
    return [_describe_preset(cls) for cls in PRESETS.values()]


def _describe_preset(cls: type[Preset]) -> dict[str, Any]:
    families: dict[Family, Preset] = {family: cls(family=family) for family in get_args(Family)}
    method = families["cifar"].expand()
    return {
        "id": cls.id(),
        "title": cls.title,
        "paper": cls.paper,
        "formula": cls.formula,
        "verified": cls.verified,
        "defaults": {
            family: preset.model_dump(mode="json", exclude={"preset", "family"}) for family, preset in families.items()
        },
        "needs": {
            "teacher": method.needs_teacher,
            "labels": method.needs_labels,
            "statistics": list(method.statistics),
            "views": method.views,
            "whole_batch": any(term.loss.needs_batch for term in method.terms),
            "learned": bool(method.learned),
        },
        "json_schema": cls.model_json_schema(),
    }


def describe_policies() -> list[dict[str, Any]]:
    """Describe every temperature policy of ``custom`` methods: what it reads of both networks, and its domain."""
    return [
        {
            **_describe_part(cls),
            "statistics": list(cls.statistics),
            "student_statistics": list(cls.student_statistics),
            "domain": cls.domain,
        }
        for cls in POLICY_CLASSES.values()
    ]


def describe_losses() -> list[dict[str, Any]]:
    """Describe every loss that a ``custom`` method can use, with the parts it reports."""
    return [
        {
            **_describe_part(cls),
            "parts": list(cls.parts),
            "needs_labels": cls.needs_labels,
            "needs_batch": cls.needs_batch,
        }
        for cls in LOSS_CLASSES.values()
    ]


def _describe_part(cls: type[MethodPart]) -> dict[str, Any]:
    fields = {name: field for name, field in cls.model_fields.items() if name != "kind"}
    return {
        "kind": cls.model_fields["kind"].default,
        "title": cls.title,
        "formula": cls.formula,
        "paper": cls.paper,
        "defaults": {name: field.default for name, field in fields.items() if not field.is_required()},
        "json_schema": cls.model_json_schema(),
    }
