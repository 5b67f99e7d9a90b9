"""Names that tell methods apart whose labels are the same."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.errors import InvalidMethod, UnknownName
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS

MARK = " #"
"""What stands between a label and a number; no label has it."""


def distinct_names(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names of methods by their labels and stored specs: the label, and ``label #2`` of another method with it.

    A label is no name: two ``custom`` methods may share one, and ``%g`` rounds parameters. A label of a preset is that
    preset's alone: a ``custom`` method that has it is number 2 even where there is no other.

    Args:
        methods: label and JSON of each, repeated or not; of equal methods the names are equal.

    Returns:
        A name for each, numbered in the order of first occurrence, presets before ``custom`` ones.
    """
    by_label: dict[str, dict[str, Mapping[str, Any]]] = {}
    keys = [_key(spec) for _, spec in methods]
    for (label, spec), key in zip(methods, keys, strict=True):
        by_label.setdefault(label, {})[key] = spec
    numbers = {label: _numbers(label, specs) for label, specs in by_label.items()}
    return [
        label if (number := numbers[label][key]) == 1 else f"{label}{MARK}{number}"
        for (label, _), key in zip(methods, keys, strict=True)
    ]


def _numbers(label: str, specs: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Number of each spec of one label, from 1 on."""
    is_taken = label in PRESETS and label != "custom"
    if len(specs) == 1 and not is_taken:
        return dict.fromkeys(specs, 1)
    ordered = sorted(specs, key=lambda key: specs[key].get("preset") == "custom")
    # Stored by versions with fewer fields, one method has several specs.
    whole = {key: _whole(specs[key]) for key in ordered}
    customs = {whole[key] for key in ordered if specs[key].get("preset") == "custom"}
    distinct = list(dict.fromkeys(whole.values()))
    first = 2 if is_taken and distinct[0] in customs else 1
    return {key: first + distinct.index(whole[key]) for key in ordered}


def _whole(spec: Mapping[str, Any]) -> str:
    """Canonical JSON of a method with every field; of one that cannot be read (any more), as it was stored."""
    try:
        return _key(parse_method(dict(spec)).model_dump(mode="json"))
    except (InvalidMethod, UnknownName):
        return _key(spec)


def _key(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))
