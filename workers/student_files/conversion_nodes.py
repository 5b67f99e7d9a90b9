"""Nodes of torch.export's JSON, one by one: allowed operators, batch normalisation and dropout, and their arguments."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.students.program import DropoutNode, Node, NormNode
from workers.students.program_operators import (
    ARITHMETIC,
    ASSERTIONS,
    ATTENTION,
    BATCH_NORM,
    DIVIDE,
    DROPOUT_IN_PLACE,
    DROPOUTS,
    MULTIPLY,
    OPERATORS,
    SIZE,
)
from workers.texts import shortened

Json = Mapping[str, Any]
_COUNTER = "num_batches_tracked"
_POSITIONAL, _KEYWORD = 1, 2
_INT_MAX = 1 << 31
_TEXT_MAX = 32
_IN_TRAINING = (
    "torch.export fixes whether a network trains when it is called, and such a one would not be trained as it was "
    "meant: call model.train() first, and export it again"
)
# Arguments that say how values lie in memory; here they lie as the pictures do.
_LAYOUT = frozenset({"memory_format"})


def reference(argument: Json) -> str:
    """Name of a tensor that an argument is. Raises KeyError, TypeError."""
    return str(argument["as_tensor"]["name"])


class NodeReader:
    """Reads nodes in their order.

    Args:
        pictures: name of the input's value.
        parameters, buffers, constants: names of values, and of the tensors that they are.
        shapes: torch's ``tensor_values``.

    Attributes:
        known: names of the values so far.
        dropouts_in_place: outputs of those.
    """

    def __init__(
        self,
        pictures: str,
        parameters: Mapping[str, str],
        buffers: Mapping[str, str],
        constants: Mapping[str, str],
        *,
        shapes: Json,
    ) -> None:
        self._pictures, self._state = pictures, {**parameters, **buffers}
        self._shapes = shapes
        self.known = {pictures, *self._state, *constants}
        self.dropouts_in_place = set[str]()
        # Sizes that grow with the batch.
        self._batches = set[str]()
        # Counters of batch normalisation after they have counted, and their modules.
        self._counted = dict[str, str]()

    def read(self, node: Json) -> Node | NormNode | DropoutNode | None:
        """The node in its safe form; None of one that is left out.

        Raises:
            InvalidStudentFile: it is not allowed.
        """
        op = node["target"]
        if op in ASSERTIONS or self._is_counter(node):
            return None
        if op == BATCH_NORM:
            return self._batch_norm(node)
        if op in DROPOUTS:
            return self._dropout(node)
        if op not in OPERATORS:
            raise InvalidStudentFile(_not_allowed(op))
        args = [self._argument(each["arg"]) for each in node["inputs"] if each["kind"] == _POSITIONAL]
        kwargs = {
            _keyword(each["name"]): self._argument(each["arg"])
            for each in node["inputs"]
            if each["kind"] == _KEYWORD and each["name"] not in _LAYOUT
        }
        if len(args) + len(kwargs) + sum(each["name"] in _LAYOUT for each in node["inputs"]) != len(node["inputs"]):
            raise InvalidStudentFile(f"a call of {op!r} has an argument that is neither positional nor by name")
        if op == ATTENTION and (kwargs.get("dropout_p") or (len(args) > 4 and args[4])):
            raise InvalidStudentFile(
                "the program has attention with dropout, whose rate torch.export fixes for training and evaluation "
                "alike: export it with a rate of 0"
            )
        outputs = tuple(self._output(each) for each in node["outputs"])
        if self._grows(op, args, kwargs):
            self._batches.update(name for name in outputs if isinstance(name, str))
        return Node(op=op, args=tuple(args), kwargs=kwargs, outputs=outputs)

    def _grows(self, op: str, args: list[JsonValue], kwargs: Json) -> bool:
        """Whether an output is a size that may grow with the batch: any but the pictures' own height and so on.

        Raises:
            InvalidStudentFile: it is no multiple of the batch: a program could do something else at another batch.
        """
        if op == SIZE:
            is_pictures = args[:1] == [{"ref": self._pictures}]
            return not (is_pictures and len(args) == 2 and isinstance(args[1], int) and args[1] > 0)
        if op not in ARITHMETIC:
            return False
        if kwargs or len(args) != 2:
            raise InvalidStudentFile(f"{op!r} takes two arguments without names")
        growing = [isinstance(each, dict) and each["ref"] in self._batches for each in args]
        multiples = {MULTIPLY: ([True, False], [False, True]), DIVIDE: ([True, False],)}.get(op, ())
        if any(growing) and growing not in multiples:
            raise InvalidStudentFile(
                f"the program computes with the number of pictures in a batch by {op!r}, and a student gives a picture "
                "the same logits in a batch of any size: only multiples of that number are taken, for shapes"
            )
        return any(growing)

    def _is_counter(self, node: Json) -> bool:
        """Whether it counts batches for batch normalisation, which its module does."""
        if node["target"] != "torch.ops.aten.add_.Tensor":
            return False
        first = node["inputs"][0]["arg"].get("as_tensor") or {"name": ""}
        if first["name"] in self._counted:
            raise InvalidStudentFile(_used_twice(self._counted[first["name"]]))
        module, _, last = str(self._state.get(first["name"], "")).rpartition(".")
        if last != _COUNTER:
            return False
        if module in self._counted.values():
            raise InvalidStudentFile(_used_twice(module))
        self._counted[str(node["outputs"][0]["as_tensor"]["name"])] = module
        return True

    def _batch_norm(self, node: Json) -> NormNode:
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        names = {part: self._tensor_name(given[part]) for part in ("weight", "bias", "running_mean", "running_var")}
        module = (names["running_mean"] or "").removesuffix(".running_mean")
        affine = names["weight"] is not None
        wanted: dict[str, str | None] = {
            "running_mean": f"{module}.running_mean",
            "running_var": f"{module}.running_var",
        }
        wanted |= {part: f"{module}.{part}" if affine else None for part in ("weight", "bias")}
        rank = len(self._shapes[reference(given["input"])]["sizes"])
        counter = f"{module}.{_COUNTER}"
        if not module or names != wanted or rank != 4 or counter not in self._state.values():
            raise InvalidStudentFile(
                f"the program has batch normalisation that is no torch.nn.BatchNorm2d with running statistics (of "
                f"{shortened(module or 'no module', 80)!r}): use that, or another normalisation"
            )
        if given["training"].get("as_bool") is not True:
            raise InvalidStudentFile(f"batch normalisation {module!r} was exported for evaluation. {_IN_TRAINING}")
        output = node["outputs"][0]["as_tensor"]["name"]
        self._check_known(reference(given["input"]))
        self._add(output)
        return NormNode(
            module=module,
            input=reference(given["input"]),
            output=output,
            momentum=_number(given["momentum"]),
            eps=_number(given["eps"]),
            affine=affine,
        )

    def _dropout(self, node: Json) -> DropoutNode:
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        source = reference(given.get("input") or given["self"])
        rate = _number(given["p"])
        if given["train"].get("as_bool") is not True and rate > 0:
            raise InvalidStudentFile(f"dropout of rate {rate} was exported for evaluation. {_IN_TRAINING}")
        if not 0 <= rate < 1:
            raise InvalidStudentFile(f"dropout of rate {rate} leaves nothing: a rate is from 0 to below 1")
        self._check_known(source)
        output = node["outputs"][0]["as_tensor"]["name"]
        self._add(output)
        if node["target"] == DROPOUT_IN_PLACE:
            self.dropouts_in_place.add(output)
        return DropoutNode(input=source, output=output, p=rate)

    def _tensor_name(self, argument: Json) -> str | None:
        """Name of the tensor of the state that an argument is; None of none."""
        return None if argument.get("as_none") is True else self._state.get(reference(argument))

    def _argument(self, argument: Json) -> JsonValue:
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
        raise InvalidStudentFile(f"the program has an argument of the kind {shortened(kind, 40)!r}, which is not taken")

    def _reference(self, tensor: Json | None) -> JsonValue:
        if tensor is None:
            return None
        self._check_known(tensor["name"])
        return {"ref": tensor["name"]}

    def _size(self, given: Json) -> JsonValue:
        if "as_int" in given:
            return _plain(given["as_int"])
        self._check_known(given["as_name"])
        return {"ref": given["as_name"]}

    def _output(self, output: Json) -> str | tuple[str, ...]:
        [(kind, value)] = output.items()
        if kind == "as_tensors":
            return tuple(self._add(each["name"]) for each in value)
        return self._add(value["as_name"] if kind == "as_sym_int" else value["name"])

    def _add(self, name: object) -> str:
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 256 or name in self.known:
            raise InvalidStudentFile(f"{shortened(name, 80)!r} is no name of a new value")
        self.known.add(name)
        return name

    def _check_known(self, name: object) -> None:
        if name not in self.known:
            raise InvalidStudentFile(f"the program reads the value {shortened(name, 80)!r}, which nothing before gives")


def _keyword(name: object) -> str:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
        raise InvalidStudentFile(f"{shortened(name, 80)!r} is no name of an argument")
    return name


def _plain(value: object) -> JsonValue:
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _TEXT_MAX):
        return value
    # An end beyond every size is how a slice without an end is written.
    if isinstance(value, int) and (abs(value) < _INT_MAX or value == (1 << 63) - 1):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise InvalidStudentFile(f"the program has an argument {shortened(value, 40)!r}, which is not taken")


def _number(argument: Json) -> float:
    value = argument.get("as_float", argument.get("as_int"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A float cannot hold every integer.
    if not is_number or (isinstance(value, int) and abs(value) >= _INT_MAX) or not isfinite(value):
        raise InvalidStudentFile("a rate, momentum or eps of the program is no number")
    return float(value)


def _used_twice(module: str) -> str:
    return (
        f"batch normalisation {shortened(module, 80)!r} is used twice: give each use a module of its own, for each has "
        "statistics of its own"
    )


def _not_allowed(op: object) -> str:
    shown = shortened(op, 80)
    if any(word in shown for word in ("bernoulli", "rand", "dropout", "aten.empty")):
        return (
            f"operator {shown!r} draws random numbers (stochastic depth, say), which torch.export fixes for training "
            "and evaluation alike: export the network without it"
        )
    return (
        f"operator {shown!r} is not among those that an uploaded student may have: build the network of others, or "
        "have who runs this service install it as a package with the entry point `retort.students`"
    )
