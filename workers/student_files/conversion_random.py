"""Random masks of a program, which torch.export writes as operators of their own: recognised as stochastic depth.

A graph says what is drawn in training and not what evaluation does instead. One meaning is certain: a product with a
mask of zeros and ones that is divided by the probability of a one has the mean of what it multiplies, and is left out.
That is what timm's ``DropPath``, torchvision's ``StochasticDepth`` and their copies do. All else is refused.
"""

from math import isclose
from typing import NamedTuple, cast

from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.student_files.archive import FLOAT32
from workers.student_files.conversion_values import Json, Values, arguments_of, named, number, output_of, reference
from workers.students.program import Draw, Scaled, StochasticDepthNode
from workers.students.program_operators import CREATORS, IN_PLACE

_ATEN = "torch.ops.aten."
# Their values are overwritten by what is drawn; uniform numbers; and a mask of a tensor of probabilities.
_MEMORY = {"new_empty.default", "empty.memory_format", "empty_like.default"}
_UNIFORM = {"rand.default", "rand_like.default"}
_DRAWN_OF = "bernoulli.default"
_ADD, _FLOOR = {"add.Tensor", "add_.Tensor"}, {"floor.default", "floor_.default"}
_DIVIDE, _MULTIPLY_IN_PLACE = {"div.Tensor", "div_.Tensor"}, "mul_.Tensor"
_MULTIPLY = {"mul.Tensor", _MULTIPLY_IN_PLACE}
_FLOAT = {"as_scalar_type": FLOAT32}
_CLOSE = 1e-6
# Probability of a one where a program names none: torch.export leaves out what is an argument's default.
_HALF = 0.5
# Operators that are read here alone.
MASK_OPERATORS = frozenset(
    _ATEN + name for name in (*_MEMORY, *_UNIFORM, _DRAWN_OF, "bernoulli_.float", "floor_.default")
)
WAY_OUT = (
    "torch.export fixes what is drawn for training and evaluation alike. Taken are torch.nn's dropouts and masks as of "
    "timm.layers.DropPath and torchvision.ops.StochasticDepth: bernoulli_(keep), divided by keep, with which one value "
    "is multiplied once. Use one of these, or export the network without it"
)


class _Mask(NamedTuple):
    """Random tensor that no node of the safe form gives yet.

    Attributes:
        shape: as of a ``StochasticDepthNode``.
        like: value whose shape it has, if ``shape`` is None.
        stage: ``memory``, ``uniform``, ``raised`` (uniform plus ``keep``), or ``drawn``, zeros and ones.
        input: value that was multiplied by it.
    """

    shape: tuple[JsonValue, ...] | None
    like: str | None
    stage: str
    keep: float = 1.0
    draw: Draw = "bernoulli_"
    is_scaled: bool = False
    input: str = ""


class RandomMasks:
    """Reads nodes of random masks, in the order of the program.

    Args:
        values: of the program; masks are values that no other node may read.

    Attributes:
        in_place: outputs of products that write to what they multiply.
        folded: values that have become a part of a node, and may be read by none.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._masks = dict[str, _Mask]()
        self._filled = dict[str, tuple[_Mask, float | None]]()
        self._divided = dict[str, tuple[str, float]]()
        self.in_place, self.folded = set[str](), set[str]()

    def read(self, node: Json) -> StochasticDepthNode | bool:
        """The node that a product with a mask becomes; whether the node was one of a mask, which becomes none.

        Raises:
            InvalidStudentFile: the random numbers are used in a way whose evaluation is not certain.
        """
        op, given = str(node["target"]).removeprefix(_ATEN), arguments_of(node)
        source = _name(given.get("self"))
        if op in _MEMORY | _UNIFORM or op == _DRAWN_OF:
            self._begin(node, op, given)
            return True
        other = _name(given.get("other"))
        if op in _MULTIPLY and source and other and (source in self._masks) != (other in self._masks):
            return self._product(node, op, (source, other))
        if source in self._masks:
            # Read once: each node of the safe form draws anew.
            return self._step(node, op, given, self._masks.pop(source))
        if node["target"] in MASK_OPERATORS:
            raise InvalidStudentFile(
                f"the operator {named(node)} writes to a value that is no mask, and is taken on masks alone: {WAY_OUT}"
            )
        if node["target"] in CREATORS and "size" in given and node["outputs"]:
            fill = given.get("fill_value") or {}
            level = number(fill) if fill.keys() & {"as_float", "as_int"} else None
            self._filled[output_of(node)] = (self._sized(given, "memory"), level)
        if op == "div.Tensor" and source and _is_number(given.get("other")):
            self._divided[output_of(node)] = (source, number(given["other"]))
        if node["target"] in IN_PLACE:
            self.forget_values()
        return False

    def forget_values(self) -> None:
        """Forget what was read of values that an operator in place may have changed since."""
        self._divided.clear()
        self._filled.clear()
        self._masks = {name: mask for name, mask in self._masks.items() if not mask.input}

    def _begin(self, node: Json, op: str, given: dict[str, Json]) -> None:
        source = _name(given.get("self"))
        if op == _DRAWN_OF:
            mask, level = self._filled.get(source, (None, None))
            if mask is None or level is None:
                raise self._refusal(node)
            self._keep(node, mask._replace(stage="drawn", keep=level, draw="bernoulli"))
            return
        stage = "uniform" if op in _UNIFORM else "memory"
        if "size" not in given:
            self._values.check_known(source)
        self._keep(node, self._sized(given, stage) if "size" in given else _Mask(None, source, stage))

    def _sized(self, given: dict[str, Json], stage: str) -> _Mask:
        sizes = self._values.argument(given["size"])
        return _Mask(tuple(sizes) if isinstance(sizes, list) else (sizes,), None, stage)

    def _keep(self, node: Json, mask: _Mask) -> None:
        """Keep a mask until a value is multiplied by it. Raises InvalidStudentFile."""
        if not 0 < mask.keep <= 1:
            raise InvalidStudentFile(
                f"the operator {named(node)} keeps with probability {mask.keep}: it is above 0, and at most 1"
            )
        self._values.refuse(output_of(node), str(self._refusal(node)))
        self._masks[output_of(node)] = mask

    def _refusal(self, node: Json) -> InvalidStudentFile:
        return InvalidStudentFile(
            f"the operator {named(node)} draws random numbers (or takes memory as it is), or computes with them, in a "
            f"way whose evaluation is not known: {WAY_OUT}"
        )

    def _step(self, node: Json, op: str, given: dict[str, Json], mask: _Mask) -> StochasticDepthNode | bool:
        """Read an operator on a mask; raises InvalidStudentFile."""
        other = given.get("other")
        if op in _DIVIDE and mask.stage == "drawn" and not mask.is_scaled and _is_number(other):
            if not isclose(number(cast(Json, other)), mask.keep, rel_tol=_CLOSE):
                raise self._refusal(node)
            if mask.input:
                return self._node(node, mask, mask.input, "product")
            made = mask._replace(is_scaled=True)
        elif op == "bernoulli_.float" and mask.stage == "memory":
            made = mask._replace(stage="drawn", keep=number(given["p"]) if "p" in given else _HALF)
        elif op in _ADD and mask.stage == "uniform" and _is_number(other) and "alpha" not in given:
            made = mask._replace(stage="raised", keep=number(cast(Json, other)))
        elif op in _FLOOR and mask.stage == "raised":
            made = mask._replace(stage="drawn", draw="floor")
        elif op == "lt.Scalar" and mask.stage == "uniform":
            made = mask._replace(stage="drawn", keep=number(cast(Json, other)), draw="below")
        elif op in ("to.dtype", "to.device") and not mask.input and given.get("dtype", _FLOAT) == _FLOAT:
            made = mask
        else:
            raise InvalidStudentFile(self._values.refused[_name(given.get("self"))])
        self._keep(node, made)
        return True

    def _product(self, node: Json, op: str, names: tuple[str, str]) -> StochasticDepthNode | bool:
        """Product of a value and a mask."""
        source, other = names if names[1] in self._masks else names[::-1]
        mask = self._masks.pop(other)
        is_like = mask.shape is not None or mask.like in (source, self._divided.get(source, ("",))[0])
        is_in_place = op == _MULTIPLY_IN_PLACE
        if mask.stage != "drawn" or mask.input or not is_like:
            raise self._refusal(node)
        if is_in_place:
            if not mask.is_scaled or names[0] != source:
                raise self._refusal(node)
            self.in_place.add(output_of(node))
            self.forget_values()
        if mask.is_scaled:
            return self._node(node, mask, source, "mask")
        undivided, by = self._divided.get(source, ("", 0.0))
        if undivided and isclose(by, mask.keep, rel_tol=_CLOSE):
            self.folded.add(source)
            return self._node(node, mask, undivided, "input")
        self._values.check_known(source)
        self._keep(node, mask._replace(input=source))
        return True

    def _node(self, node: Json, mask: _Mask, source: str, scale: Scaled) -> StochasticDepthNode:
        self._values.check_known(source)
        output = self._values.add(output_of(node))
        return StochasticDepthNode(
            input=source, output=output, keep=mask.keep, shape=mask.shape, draw=mask.draw, scale=scale
        )


def _name(argument: Json | None) -> str:
    """Name of a tensor that an argument is; empty of others."""
    return reference(argument) if isinstance(argument, dict) and "as_tensor" in argument else ""


def _is_number(argument: Json | None) -> bool:
    return isinstance(argument, dict) and bool(argument.keys() & {"as_float", "as_int"})
