"""Text fields of an upload of logits: which samples, views and classes its rows are of."""

from collections.abc import Mapping

from pydantic import ValidationError

from service.api.bodies.multipart import TEXT_MAX_BYTES
from service.api.bodies.teacher_fields import CLASS_FIELDS, parse_field, refusal_of
from service.db.queries.api_queries import ApiQueries
from service.errors import InvalidRequest
from workers.errors import UnknownName
from workers.teacher.imports.request import ImportOptions

_PLAIN = ("split", "rows", "output_kind", "dtype", "source")
_FLAGS = ("accept_teacher", "prepare")
_JSON = ("validation", "class_names", "class_map", "views")
FIELDS = {
    **dict.fromkeys((*_PLAIN, *_JSON, "dataset", "encoding", *_FLAGS), TEXT_MAX_BYTES),
    **CLASS_FIELDS,
}


def options_of(fields: Mapping[str, str], queries: ApiQueries) -> ImportOptions:
    """Read the statements of a client about logits.

    Raises:
        InvalidRequest: a field is missing, cannot be read, or has a wrong value.
        UnknownName: there is no dataset of this name.
    """
    given: dict[str, object] = {name: fields[name] for name in _PLAIN if name in fields}
    given |= {name: parse_field(name, fields[name]) for name in _JSON if name in fields}
    given["dataset"] = _dataset(fields.get("dataset", "").strip(), queries)
    if encoding := fields.get("encoding", "").strip():
        given["encoding"] = parse_field("encoding", encoding) if encoding.startswith("{") else encoding
    for name in _FLAGS:
        if name in fields:
            flag = {"true": True, "false": False}.get(fields[name].strip().lower())
            given[name] = fields[name] if flag is None else flag
    try:
        return ImportOptions.model_validate(given)
    except ValidationError as error:
        refusal = refusal_of(error)
    raise refusal


def _dataset(text: str, queries: ApiQueries) -> object:
    if text.startswith("{"):
        return parse_field("dataset", text)
    if not text:
        raise InvalidRequest("Field required: the dataset whose samples the logits are of, `dataset`", "#/dataset")
    found = queries.find_dataset(text)
    if found is None:
        raise UnknownName("dataset", text, queries.dataset_names())
    return found.spec
