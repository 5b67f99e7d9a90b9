"""Values of a program that is being read, and arguments of its nodes, from torch.export's JSON."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.student_files.archive import DTYPE_NAMES
from workers.students.program_operators import DTYPES
from workers.texts import shortened

Json = Mapping[str, Any]
INT_MAX = 1 << 31
_TEXT_MAX = 64
_STRIDED = 7


def reference(argument: Json) -> str:
    """Name of a tensor that an argument is. Raises KeyError, TypeError."""
    return str(argument["as_tensor"]["name"])


def arguments_of(node: Json) -> dict[str, Json]:
    """Arguments of a node by their names."""
    return {each["name"]: each["arg"] for each in node["inputs"]}


def output_of(node: Json) -> str:
    """Name of a node's first value. Raises KeyError, TypeError."""
    return reference(node["outputs"][0])


def named(node: Json) -> str:
    """Operator of a node, with the module where it stands if the program says it, for messages."""
    shown = repr(shortened(node["target"], 80))
    stack = str((node.get("metadata") or {}).get("nn_module_stack") or "")
    # Of each module, from the network inwards: a name of the trace, its path, its class.
    last = stack.rpartition(";")[2].split(",")
    path = last[1] if len(last) == 3 else ""
    return f"{shown} of module {shortened(path, 80)!r} ({shortened(last[2], 80)})" if path else shown


class Values:
    """Values of a program so far.

    Args:
        given: names before the first node.

    Attributes:
        known: names of all.
        refused: reasons why others must not be read.
    """

    def __init__(self, given: Iterable[str]) -> None:
        self.known = set(given)
        self.refused = dict[str, str]()

    def add(self, name: object) -> str:
        """A new value. Raises InvalidStudentFile."""
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 256 or self._is_there(name):
            raise InvalidStudentFile(f"{shortened(name, 80)!r} is no name of a new value")
        self.known.add(name)
        return name

    def _is_there(self, name: str) -> bool:
        return name in self.known or name in self.refused

    def refuse(self, name: str, reason: str) -> None:
        """Add a value that no node may read. Raises InvalidStudentFile."""
        self.known.discard(self.add(name))
        self.refused[name] = reason

    def check_known(self, name: object) -> None:
        """Refuse to read a value that is not there. Raises InvalidStudentFile."""
        if name in self.known:
            return
        raise InvalidStudentFile(
            self.refused.get(str(name))
            or f"the program reads the value {shortened(name, 80)!r}, which nothing before gives"
        )

    def outputs(self, node: Json) -> tuple[str | tuple[str, ...], ...]:
        """Add the values that a node gives."""
        return tuple(self._output(each) for each in node["outputs"])

    def _output(self, output: Json) -> str | tuple[str, ...]:
        [(kind, value)] = output.items()
        if kind == "as_tensors":
            return tuple(self.add(each["name"]) for each in value)
        return self.add(value["as_name"] if kind == "as_sym_int" else value["name"])

    def argument(self, argument: Json) -> JsonValue:
        """An argument in its safe form. Raises InvalidStudentFile."""
        [(kind, value)] = argument.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            return self._reference(value if kind == "as_tensor" else value.get("as_tensor"))
        if kind in ("as_tensors", "as_optional_tensors"):
            return [self._reference(each if kind == "as_tensors" else each.get("as_tensor")) for each in value]
        if kind in ("as_int", "as_float", "as_bool", "as_string"):
            return _plain(value)
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [_plain(each) for each in value]
        if kind == "as_sym_int":
            return self._size(value)
        if kind == "as_sym_ints":
            return [self._size(each) for each in value]
        if kind == "as_scalar_type":
            return {"dtype": _dtype(value)}
        if kind == "as_device":
            # Whatever it was exported on, it computes where the pictures are.
            return {"device": "pictures"}
        raise InvalidStudentFile(f"the program has an argument of the kind {shortened(kind, 40)!r}, which is not taken")

    def _reference(self, tensor: Json | None) -> JsonValue:
        if tensor is None:
            return None
        self.check_known(tensor["name"])
        return {"ref": tensor["name"]}

    def _size(self, given: Json) -> JsonValue:
        if "as_int" in given:
            return _plain(given["as_int"])
        self.check_known(given["as_name"])
        return {"ref": given["as_name"]}


def _plain(value: object) -> JsonValue:
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _TEXT_MAX):
        return value
    # An end beyond every size is how a slice without an end is written.
    if isinstance(value, int) and (abs(value) < INT_MAX or value == (1 << 63) - 1):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise InvalidStudentFile(f"the program has an argument {shortened(value, 40)!r}, which is not taken")


def _dtype(number: object) -> str:
    name = DTYPE_NAMES.get(number) if isinstance(number, int) else None
    if name not in DTYPES:
        raise InvalidStudentFile(
            f"the program computes in {name or f'the dtype {shortened(number, 20)} of torch'}, and {', '.join(DTYPES)} "
            "are taken: export it in float32; a job's `precision` trains in others"
        )
    return name


def keyword(name: object) -> str:
    """Name of an argument. Raises InvalidStudentFile."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
        raise InvalidStudentFile(f"{shortened(name, 80)!r} is no name of an argument")
    return name


def number(argument: Json) -> float:
    """Number that an argument is. Raises InvalidStudentFile."""
    value = argument.get("as_float", argument.get("as_int"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A float cannot hold every integer.
    if not is_number or (isinstance(value, int) and abs(value) >= INT_MAX) or not isfinite(value):
        raise InvalidStudentFile("a rate, momentum or eps of the program is no number")
    return float(value)


def is_layout(argument: Json, name: str) -> bool:
    """Whether an argument says how values lie in memory alone: here they lie as the pictures do."""
    return name in ("memory_format", "pin_memory") or (name == "layout" and argument.get("as_layout") == _STRIDED)
