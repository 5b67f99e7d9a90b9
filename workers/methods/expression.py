"""Temperature expressions: the language, and arithmetic on arrays by an expression that has been read.

``expression_parser.py`` reads the text, which comes from strangers over HTTP; nothing of it is ever executed.

Standard library only: the arrays and their functions come from the caller.

Shapes: B batch, 1 kept for broadcasting.
"""

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from workers.methods.cache_statistics import CONFIDENCE, MEANS, ROW_STATISTICS, SAMPLES

Array = Any
"""A torch.Tensor or a numpy.ndarray; their common operations have no common type."""

TEACHER_STATISTICS = ROW_STATISTICS
"""What the cache holds of each teacher row; the student's counterparts are called ``student_max`` and so on."""

STUDENT_PREFIX = "student_"
SCALARS = ("classes", "epoch", "epochs")
CACHE_STATISTICS = (*MEANS, *SAMPLES, CONFIDENCE)
"""Over the whole cache, see ``cache_statistics.py``; the confidence is that of the label's class, at temperature 1."""

NAMES = (
    *TEACHER_STATISTICS,
    *(STUDENT_PREFIX + name for name in TEACHER_STATISTICS),
    *SCALARS,
    *CACHE_STATISTICS,
)


class Function(NamedTuple):
    """Function of the language: its name in the array libraries, and how many arguments it takes.

    Attributes:
        attribute: its name in numpy and in torch, which take the same positional arguments.
        least: the fewest arguments.
        most: the most; None for any number, taken two at a time from the left.
    """

    attribute: str
    least: int
    most: int | None


FUNCTIONS: dict[str, Function] = {
    "min": Function("minimum", 2, None),
    "max": Function("maximum", 2, None),
    "clip": Function("clip", 3, 3),
    "log": Function("log", 1, 1),
    "exp": Function("exp", 1, 1),
    "sqrt": Function("sqrt", 1, 1),
    "abs": Function("abs", 1, 1),
    "tanh": Function("tanh", 1, 1),
    "where": Function("where", 3, 3),
}

OPERATORS: dict[type[ast.AST], Callable[..., Array]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
COMPARISONS: dict[type[ast.AST], Callable[..., Array]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

# ----------------------------------------------------------------------------------------------------------- the tree

Node: TypeAlias = "float | str | Operation | Power"
"""A number, a name, or what is computed of other nodes."""


@dataclass(frozen=True)
class Operation:
    apply: Function | Callable[..., Array]
    operands: tuple[Node, ...]


@dataclass(frozen=True)
class Power:
    base: Node
    exponent: float


@dataclass(frozen=True)
class ParsedExpression:
    """A temperature expression that has been read; immutable, equal and hashed by its text.

    Attributes:
        text: as it was given.
        tree: what it computes.
        names: which of ``NAMES`` it uses.
    """

    text: str
    tree: Node = field(compare=False, repr=False)
    names: frozenset[str] = field(compare=False)

    @property
    def teacher_statistics(self) -> tuple[str, ...]:
        """The cached statistics that it reads of the teacher, sorted."""
        return tuple(sorted(self.names.intersection(TEACHER_STATISTICS)))

    @property
    def student_statistics(self) -> tuple[str, ...]:
        """The statistics that it reads of the student, sorted and without the prefix."""
        return tuple(sorted(name for name in TEACHER_STATISTICS if STUDENT_PREFIX + name in self.names))

    @property
    def cache_statistics(self) -> tuple[str, ...]:
        """The statistics over the whole cache that it reads, sorted."""
        return tuple(sorted(self.names.intersection(CACHE_STATISTICS)))

    def evaluate(
        self,
        names: Mapping[str, Array],
        module: ModuleType,
        constant: Callable[[float], Array],
        on_clip: Callable[[Array, Array], None] = lambda given, clipped: None,
    ) -> Array:
        """Evaluate the expression: [B, 1], in the dtype of what is given; with torch, differentiable in every name.

        Nothing is guarded: outside its domain a function gives NaN or infinity. NumPy also warns then, so a caller with
        NumPy wraps the call in ``numpy.errstate(all="ignore")`` and looks at the result. In torch the branch that
        ``where`` or ``clip`` drops still multiplies its derivative by 0, and 0 times infinity is NaN:
        ``sqrt(clip(x, 0.1, 9))`` is safe where ``clip(sqrt(x), 0.1, 9)`` is not.

        Args:
            names: the value [B, 1] of at least each name in ``self.names``.
            module: ``numpy`` or ``torch``, whichever the arrays are of.
            constant: makes the array [B, 1] of one number.
            on_clip: called with what each ``clip`` was given and has made of it, [B, 1] both.

        Raises:
            KeyError: ``names`` lacks one.
        """

        def value(node: Node) -> Array:
            match node:
                case float():
                    return constant(node)
                case str():
                    return names[node]
                case Power(base, exponent):
                    return value(base) ** exponent
                case Operation(apply, operands):
                    values = map(value, operands)
                    if not isinstance(apply, Function):
                        return apply(*values)
                    function = getattr(module, apply.attribute)
                    if apply is not FUNCTIONS["clip"]:
                        return functools.reduce(function, values) if apply.most is None else function(*values)
                    given, *bounds = values
                    clipped = function(given, *bounds)
                    on_clip(given, clipped)
                    return clipped

        return value(self.tree)
