"""Labels of jobs in requests: tags, a note, and the changes of a job that was posted."""

import re
from collections import Counter
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from service.api.schemas.base import OptionalName
from workers.spec import AtMost, Spec
from workers.texts import case_aside, composed

TAGS_MAX = 20
_TAG_CHARACTERS = 50
_NOTE_CHARACTERS = 2000
# Control characters but tab and newline, and those that reorder or break a line, see ``workers.texts.printable``.
_HIDDEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_SEEN, _AT_END = rf"[^\t\n{_HIDDEN}]", rf"[^\s{_HIDDEN}]"
_TAG, _NOTE = rf"^{_AT_END}({_SEEN}*{_AT_END})?$", rf"^[^{_HIDDEN}]*$"


class _Distinct:
    """Refuse a list with a text twice, in Python case aside, which JSON schema has no word for."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"uniqueItems": True}

    def _check(self, texts: list[str]) -> list[str]:
        counts = Counter(map(case_aside, texts))
        twice = next((text for text in texts if counts[case_aside(text)] > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice, upper and lower case being the same: name each once")
        return texts


def _check_tag(tag: str) -> str:
    """Say what a pattern would say, in words."""
    if not re.fullmatch(_TAG, tag):
        raise ValueError(f"the tag {tag!r} has a blank at an end, or characters that do not show: leave them out")
    return tag


def _check_note(note: str) -> str:
    if not re.fullmatch(_NOTE, note):
        raise ValueError("the note has control characters: of them only tabs and newlines are allowed")
    return note


def _no_default(schema: JsonDict) -> None:
    """Drop the default from a schema: what is left out stays as it is."""
    schema.pop("default", None)


Tag = Annotated[
    str,
    StringConstraints(min_length=1, max_length=_TAG_CHARACTERS),
    AfterValidator(_check_tag),
    BeforeValidator(lambda given: composed(given) if isinstance(given, str) else given),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _TAG_CHARACTERS, "pattern": _TAG}),
]
Tags = Annotated[
    list[Tag],
    _Distinct(),
    AtMost(TAGS_MAX),
    Field(examples=[["baseline", "cifar"]]),
]
Note = Annotated[
    str,
    StringConstraints(max_length=_NOTE_CHARACTERS),
    AfterValidator(_check_note),
    WithJsonSchema({"type": "string", "maxLength": _NOTE_CHARACTERS, "pattern": _NOTE}),
]
TAGS_HELP = "short words to find it by, without blanks at their ends; they are compared case aside"
NOTE_HELP = "text for people, of several lines if need be"


class JobChanges(Spec):
    """Changes of a job: what is given replaces what there was, what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"minProperties": 1, "examples": [{"name": "KD, T = 4", "tags": ["baseline", "cifar"]}]}
    )

    name: OptionalName = Field("", json_schema_extra=_no_default)
    tags: Tags = Field([], description=f"all of them: {TAGS_HELP}", json_schema_extra=_no_default)
    note: Note = Field("", description=f"{NOTE_HELP}; empty takes it away", json_schema_extra=_no_default)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"nothing is given: name at least one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """Columns of the job that change, by name; no tags are NULL."""
        return {name: getattr(self, name) or (None if name == "tags" else "") for name in self.model_fields_set}
