"""Nodes of torch.export's JSON, one by one: allowed operators, batch normalisation and what is drawn at random."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.student_files.conversion_random import MASK_OPERATORS, WAY_OUT, RandomMasks
from workers.student_files.conversion_values import (
    Json,
    Values,
    arguments_of,
    is_layout,
    keyword,
    named,
    number,
    output_of,
    reference,
)
from workers.students.program import AnyNode, DropoutNode, Node, NormNode
from workers.students.program_operators import (
    ARITHMETIC,
    ASSERTIONS,
    ATTENTION,
    BATCH_NORM,
    CREATORS_ANYWHERE,
    DIVIDE,
    DROPOUT_FORMS,
    DROPOUTS,
    DROPOUTS_IN_PLACE,
    EINSUM,
    IN_PLACE,
    MULTIPLY,
    OPERATORS,
    SIZE,
    SIZED,
    VIEWS,
)
from workers.texts import shortened

_COUNTER, _AFFINE = "num_batches_tracked", ("weight", "bias")
_POSITIONAL, _KEYWORD = 1, 2
_RANDOM = ("bernoulli", "rand", "dropout", "normal", "uniform", "multinomial", "exponential", "aten.empty", "new_empty")
_NAMED = 6
_IN_TRAINING = (
    "torch.export fixes whether a network trains when it is called, and such a one would not be trained as it was "
    "meant: call model.train() first, and export it again"
)


class NodeReader:
    """Reads nodes in their order.

    Args:
        pictures: name of the input's value.
        parameters, buffers, constants: names of values, and of the tensors that they are.
        shapes: torch's ``tensor_values``.

    Attributes:
        values: the values so far.
        masks: those that are drawn at random.
        dropouts_in_place: outputs of those.
        is_evaluation: a dropout says that it was exported for evaluation.
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
        self._pictures, self._parameters, self._buffers = pictures, parameters, buffers
        self._shapes = shapes
        self.values = Values({pictures, *parameters, *buffers, *constants})
        self.masks = RandomMasks(self.values)
        self.dropouts_in_place = self.masks.in_place
        self.is_evaluation = False
        # Sizes that grow with the batch.
        self._batches = set[str]()
        # Counters of batch normalisation after they have counted, and their modules.
        self._counted = dict[str, str]()

    def read(self, node: Json) -> AnyNode | None:
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
        masked = self.masks.read(node)
        if masked is not False:
            return None if masked is True else masked
        args, kwargs = self._arguments(node)
        if op == ATTENTION:
            _check_attention(node)
        outputs = self.values.outputs(node)
        if self._grows(node, args, kwargs):
            self._batches.update(name for name in outputs if isinstance(name, str))
        return Node(op=op, args=tuple(args), kwargs=kwargs, outputs=outputs)

    def _arguments(self, node: Json) -> tuple[list[JsonValue], dict[str, JsonValue]]:
        """Arguments by position, and by name."""
        inputs = [each for each in node["inputs"] if not is_layout(each["arg"], each["name"])]
        args = [self.values.argument(each["arg"]) for each in inputs if each["kind"] == _POSITIONAL]
        kwargs = {
            keyword(each["name"]): self.values.argument(each["arg"]) for each in inputs if each["kind"] == _KEYWORD
        }
        if len(args) + len(kwargs) != len(inputs):
            raise InvalidStudentFile(f"a call of {node['target']!r} has an argument that is not by position or name")
        _check_first(node, args)
        if node["target"] in CREATORS_ANYWHERE:
            kwargs["device"] = {"device": "pictures"}
        return args, kwargs

    def _grows(self, node: Json, args: Sequence[JsonValue], kwargs: Json) -> bool:
        """Whether an output is a size that may grow with the batch: any but the pictures' own height and so on.

        Raises:
            InvalidStudentFile: it is no multiple of the batch, or no shape is made of it: a program could do something
                else at another batch.
        """
        op = node["target"]
        if op == SIZE:
            is_pictures = args[:1] == [{"ref": self._pictures}]
            return not (is_pictures and len(args) == 2 and isinstance(args[1], int) and args[1] > 0)
        if op in ARITHMETIC and (kwargs or len(args) != 2):
            raise InvalidStudentFile(f"{op!r} takes two arguments without names")
        growing = [isinstance(each, dict) and each.get("ref") in self._batches for each in (*args, *kwargs.values())]
        multiples = {MULTIPLY: ([True, False], [False, True]), DIVIDE: ([True, False],)}.get(op, ())
        if any(growing) and growing not in multiples and op not in SIZED:
            raise InvalidStudentFile(
                f"the program computes with the number of pictures in a batch by {named(node)}, and a student gives a "
                "picture the same logits in a batch of any size: only multiples of that number are taken, for shapes"
            )
        return op in ARITHMETIC and any(growing)

    def _is_counter(self, node: Json) -> bool:
        """Whether it counts batches for batch normalisation, which its module does."""
        if node["target"] != "torch.ops.aten.add_.Tensor":
            return False
        first = node["inputs"][0]["arg"].get("as_tensor") or {"name": ""}
        if first["name"] in self._counted:
            raise InvalidStudentFile(_used_twice(self._counted[first["name"]]))
        module, _, last = str(self._buffers.get(first["name"], "")).rpartition(".")
        if last != _COUNTER:
            return False
        if module in self._counted.values():
            raise InvalidStudentFile(_used_twice(module))
        self._counted[str(node["outputs"][0]["as_tensor"]["name"])] = module
        return True

    def _batch_norm(self, node: Json) -> NormNode:
        given = arguments_of(node)
        names = {part: _state_name(given[part], self._parameters) for part in _AFFINE}
        names |= {part: _state_name(given[part], self._buffers) for part in ("running_mean", "running_var")}
        module = (names["running_mean"] or "").removesuffix(".running_mean")
        affine = names["weight"] is not None
        wanted: dict[str, str | None] = {
            "running_mean": f"{module}.running_mean",
            "running_var": f"{module}.running_var",
        }
        wanted |= {part: f"{module}.{part}" if affine else None for part in ("weight", "bias")}
        frozen = [name for part in _AFFINE if (name := _state_name(given[part], self._buffers))]
        if frozen:
            raise InvalidStudentFile(
                f"batch normalisation {shortened(module, 80)!r} has buffers as weight or bias "
                f"({', '.join(shortened(name, 80) for name in frozen)}), and a student trains them: make parameters of "
                "them, or leave them out by affine=False"
            )
        rank = len(self._shapes[reference(given["input"])]["sizes"])
        counter = f"{module}.{_COUNTER}"
        if not module or names != wanted or rank not in (2, 3, 4) or counter not in self._buffers.values():
            raise InvalidStudentFile(
                f"the program has batch normalisation that is no torch.nn.BatchNorm1d or BatchNorm2d with running "
                f"statistics: {named(node)}, of {shortened(module or 'no state', 80)!r}. Use these, or another "
                "normalisation"
            )
        if given["training"].get("as_bool") is not True:
            raise InvalidStudentFile(f"batch normalisation {module!r} was exported for evaluation. {_IN_TRAINING}")
        self.values.check_known(reference(given["input"]))
        return NormNode(
            module=module,
            input=reference(given["input"]),
            output=self.values.add(output_of(node)),
            momentum=number(given["momentum"]),
            eps=number(given["eps"]),
            affine=affine,
            dims=2 if rank == 4 else 1,
        )

    def _dropout(self, node: Json) -> DropoutNode:
        given = arguments_of(node)
        source = reference(given.get("input") or given["self"])
        rate = number(given["p"])
        is_trained = given["train"].get("as_bool") is True
        self.is_evaluation |= not is_trained
        if not is_trained and rate > 0:
            raise InvalidStudentFile(
                f"dropout of rate {rate} was exported for evaluation: {named(node)}. {_IN_TRAINING}"
            )
        _check_rate(rate, node)
        self.values.check_known(source)
        output = self.values.add(output_of(node))
        if node["target"] in DROPOUTS_IN_PLACE:
            self.dropouts_in_place.add(output)
            self.masks.forget_values()
        name = node["target"].split(".")[3].removesuffix("_")
        return DropoutNode(input=source, output=output, p=rate, form=next(x for x in DROPOUT_FORMS if x == name))


def _state_name(argument: Json, names: Mapping[str, str]) -> str | None:
    """Name of the tensor of a part of the state that an argument is; empty of others, None of none."""
    return None if argument.get("as_none") is True else names.get(reference(argument), "")


def _check_first(node: Json, args: Sequence[JsonValue]) -> None:
    """Refuse a view, or an operator in place, whose tensor is not the first argument by position.

    It would be seen as one of no memory (``conversion_memory``), and write to pictures or buffers.
    """
    op = node["target"]
    is_first = bool(args) and isinstance(args[0], dict) and "ref" in args[0]
    if op == EINSUM:
        is_first = len(args) == 2 and isinstance(args[1], list)
    if op in VIEWS | IN_PLACE | {EINSUM} and not is_first:
        raise InvalidStudentFile(
            f"a call of {named(node)} has not the tensor that it views or writes to by position: export the network "
            "anew, for torch.export gives it so"
        )


def _check_attention(node: Json) -> None:
    """Refuse a rate of dropout that is none."""
    given = arguments_of(node)
    if "dropout_p" in given:
        _check_rate(number(given["dropout_p"]), node)


def _check_rate(rate: float, node: Json) -> None:
    if not 0 <= rate < 1:
        raise InvalidStudentFile(f"dropout of rate {rate} leaves nothing: {named(node)}. A rate is from 0 to below 1")


def _used_twice(module: str) -> str:
    return (
        f"batch normalisation {shortened(module, 80)!r} is used twice: give each use a module of its own, for each has "
        "statistics of its own"
    )


def check_operators(nodes: Sequence[Json]) -> None:
    """Refuse a program with operators that are not allowed.

    Raises:
        InvalidStudentFile: naming each, with the module of its first call, and what can be done.
    """
    allowed = OPERATORS | ASSERTIONS | DROPOUTS | MASK_OPERATORS | {BATCH_NORM}
    first = {node["target"]: node for node in reversed(nodes) if node["target"] not in allowed}
    if not first:
        return
    listed = ", ".join(named(node) for node in list(first.values())[::-1][:_NAMED])
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    if any(word in op for op in first for word in _RANDOM):
        raise InvalidStudentFile(f"the program draws random numbers by the operators {listed}{more}. {WAY_OUT}")
    raise InvalidStudentFile(
        f"the program has operators that are not among those that an uploaded student may have: {listed}{more}. Build "
        "the network of others, or have who runs this service install it as a package with the entry point "
        "`retort.students`"
    )
