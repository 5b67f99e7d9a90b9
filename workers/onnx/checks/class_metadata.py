"""Class names in the metadata of an ONNX file, as exporters of detectors and classifiers leave them there.

Ultralytics writes ``names`` as the text of a Python dictionary, others a JSON list or object, or names with commas or
line breaks between them. Text is parsed as a literal, never run. Only onnx and the standard library are imported.
"""

import ast
import json
from collections.abc import Mapping

import onnx

from workers.onnx.checks.parsing import readable

KEYS = ("class_names", "names", "classes", "labels", "id2label")
TEXT_MAX = 128 << 10  # characters, so that the child's answer has room for them
NAME_MAX = 1024


def class_names_of(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Names of the output's columns in their order; None if the metadata has none that can be read."""
    found = {readable(entry.key): readable(entry.value) for entry in model.metadata_props}
    for key in KEYS:
        try:
            names = _parsed(found[key]) if key in found else None
        except ValueError:  # a number for a name, with more digits than Python writes
            names = None
        if names is not None:
            return names
    return None


def _parsed(text: str) -> tuple[str, ...] | None:
    if not 0 < len(text) <= TEXT_MAX:
        return None
    value = _literal(text)
    if isinstance(value, Mapping):
        value = _in_order(value)
    if value is None and not text.lstrip().startswith(("{", "[")):
        value = [part.strip() for part in (text.splitlines() if "\n" in text else text.split(","))]
    if not isinstance(value, list | tuple):
        return None
    names = tuple(str(name) for name in value)
    fit = len(names) > 1 and all(0 < len(name) <= NAME_MAX and name.isprintable() for name in names)
    return names if fit else None


def _literal(text: str) -> object:
    """The value of JSON or of a Python literal; None if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _in_order(value: Mapping[object, object]) -> list[object] | None:
    """Names by their numbers, if these are 0 to N - 1."""
    by_number = {str(key): name for key, name in value.items()}
    if set(by_number) != {str(k) for k in range(len(value))}:
        return None
    return [by_number[str(k)] for k in range(len(value))]
