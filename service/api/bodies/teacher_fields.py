"""Text fields of a teacher's upload that say how its output is read."""

from collections.abc import Mapping

from pydantic import ValidationError

from service.api.bodies.json_bodies import parse_json
from service.api.bodies.limits import check_depth
from service.errors import InvalidRequest, MalformedBody
from workers.config.teacher import TeacherReading

# Of classes, the most bytes of each.
CLASS_FIELDS = {"class_names": 1 << 20, "class_map": 256 << 10}
_JSON_FIELDS = ("class_names", "class_map", "input_values")


def reading_of(fields: Mapping[str, str]) -> TeacherReading:
    """Read the statements of a client about a teacher's output, classes and other inputs.

    Raises:
        InvalidRequest: a field cannot be read, or has a wrong value.
    """
    given: dict[str, object] = {}
    if "output_kind" in fields:
        given["output_kind"] = fields["output_kind"]
    for name in _JSON_FIELDS:
        if name in fields:
            given[name] = parse_field(name, fields[name])
    try:
        return TeacherReading.model_validate(given)
    except ValidationError as error:
        refusal = refusal_of(error)
    raise refusal


def refusal_of(error: ValidationError) -> InvalidRequest:
    """Refusal that names the first field that cannot be used, or the upload where it is no field's fault."""
    first = error.errors()[0]
    what = f"the field {first['loc'][0]!r}" if first["loc"] else "the upload"
    where = "".join(f"/{step}" for step in first["loc"])
    return InvalidRequest(f"{what} cannot be used: {first['msg'].removeprefix('Value error, ')}", f"#{where}")


def parse_field(name: str, text: str) -> object:
    """JSON of a field; names may also stand in a line each. Raises InvalidRequest."""
    if name == "class_names" and not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        check_depth(text.encode())
        return parse_json(text, f"the field {name!r}")
    except ValueError as error:
        raise InvalidRequest(f"the field {name!r} is no JSON: {error}", f"#/{name}") from error
    except (MalformedBody, InvalidRequest) as error:
        raise InvalidRequest(str(error), f"#/{name}") from error
