"""Temperature expressions: what they compute, on NumPy and on torch, and that nothing else gets through."""

import ast
import dataclasses
import inspect
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from store.statistics import STATISTICS
from workers.errors import InvalidMethod
from workers.methods.expression import FUNCTIONS, NAMES, TEACHER_STATISTICS, ParsedExpression
from workers.methods.expression_parser import _Reading, parse

Float64 = npt.NDArray[np.float64]
Row = Any
"""One sample's names as attributes, each a Python float."""

VALUES: dict[str, list[float]] = {
    "max": [7.25, 3.5, 0.75],
    "min": [-2.5, -0.125, -6.0],
    "sharpness": [7.5, 4.25, 2.0],
    "std": [1.5, 0.875, 2.25],
    "mean": [0.5, -0.25, 0.0],
    "student_max": [4.5, 5.0, 0.5],
    "student_min": [-1.5, -3.0, -0.5],
    "student_sharpness": [5.25, 5.5, 2.75],
    "student_std": [0.75, 1.625, 0.25],
    "student_mean": [0.25, -0.5, 0.125],
    "classes": [100.0] * 3,
    "epoch": [3.0] * 3,
    "epochs": [20.0] * 3,
    "max_mean": [4.0] * 3,
    "min_mean": [-3.0] * 3,
    "sharpness_mean": [4.5] * 3,
    "std_mean": [1.75] * 3,
    "mean_mean": [0.125] * 3,
    "sample_max": [7.0, 3.25, 0.875],
    "sample_min": [-2.25, -0.5, -5.0],
    "sample_sharpness": [7.25, 4.0, 2.125],
    "sample_std": [1.25, 0.75, 2.5],
    "sample_mean": [0.25, -0.125, 0.5],
    "class_confidence": [0.875, 0.5, 0.25],
}
"""Name -> one value per sample, exact in binary."""

MEANINGS: list[tuple[str, Callable[[Row], float]]] = [
    ("4", lambda v: 4.0),
    (" .5e1 ", lambda v: 5.0),
    ("clip(max / log(classes), 1, 16)", lambda v: min(max(v.max / math.log(v.classes), 1.0), 16.0)),
    ("2*max/(max+student_max)*4", lambda v: 2 * v.max / (v.max + v.student_max) * 4),
    ("1 + 3 * (1 - epoch / epochs)", lambda v: 1 + 3 * (1 - v.epoch / v.epochs)),
    ("max - min - mean", lambda v: (v.max - v.min) - v.mean),
    ("4 * std / std_mean * class_confidence", lambda v: 4 * v.std / v.std_mean * v.class_confidence),
    ("max - sample_max + max_mean", lambda v: v.max - v.sample_max + v.max_mean),
    ("max / std / 2", lambda v: (v.max / v.std) / 2),
    ("max - std * 2 ** 2", lambda v: v.max - v.std * 4),
    ("-max ** 2", lambda v: -(v.max**2)),
    ("(-max) ** 2", lambda v: v.max**2),
    ("std ** -2", lambda v: 1 / (v.std * v.std)),
    ("std ** +.5", lambda v: math.sqrt(v.std)),
    ("2 - -+max", lambda v: 2 + v.max),
    ("min(max, student_max, classes)", lambda v: min(v.max, v.student_max, v.classes)),
    ("max(1, student_std, std, 1.25)", lambda v: max(1, v.student_std, v.std, 1.25)),
    ("max(max, min)", lambda v: v.max),
    ("max (min, 1) + min", lambda v: 1 + v.min),
    ("exp(student_mean) + tanh(mean)", lambda v: math.exp(v.student_mean) + math.tanh(v.mean)),
    ("sqrt(sharpness * student_sharpness)", lambda v: math.sqrt(v.sharpness * v.student_sharpness)),
    ("abs(student_min) + abs(std)", lambda v: -v.student_min + v.std),
    ("where(max < student_max, max, 2)", lambda v: v.max if v.max < v.student_max else 2.0),
    ("where(max < 3.5, 1, 2)", lambda v: 1.0 if v.max < 3.5 else 2.0),
    ("where((max <= 3.5), 1, 2)", lambda v: 1.0 if v.max <= 3.5 else 2.0),
    ("where(max > 3.5, 1, 2)", lambda v: 1.0 if v.max > 3.5 else 2.0),
    ("where(max >= 3.5, 1, 2)", lambda v: 1.0 if v.max >= 3.5 else 2.0),
    ("where(std < 1, 1, where(std < 2, 2, 3))", lambda v: math.floor(v.std) + 1.0),
]
"""A text, and what it means in plain Python for one sample."""


def _numpy_constant(value: float) -> Float64:
    return np.full((3, 1), value)


def _torch_constant(value: float) -> Tensor:
    return torch.full((3, 1), value, dtype=torch.float64)


def _numpy_names() -> dict[str, Float64]:
    return {name: np.array(values).reshape(3, 1) for name, values in VALUES.items()}


def _torch_names() -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in _numpy_names().items()}


def _on_numpy(expression: ParsedExpression) -> Float64:
    with np.errstate(all="ignore"):
        value_B1: Float64 = expression.evaluate(_numpy_names(), np, _numpy_constant)
    return value_B1


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(("text", "meaning"), MEANINGS, ids=[text for text, _ in MEANINGS])
def test_expression_numpy_and_torch_both_give_what_the_text_means(text: str, meaning: Callable[[Row], float]) -> None:
    rows = [SimpleNamespace(**dict(zip(VALUES, row, strict=True))) for row in zip(*VALUES.values(), strict=True)]
    wanted_B1 = np.array([[meaning(row)] for row in rows])
    expression = parse(text)
    by_torch_B1 = expression.evaluate(_torch_names(), torch, _torch_constant)
    assert by_torch_B1.dtype == torch.float64
    for value_B1 in (_on_numpy(expression), by_torch_B1.numpy()):
        np.testing.assert_allclose(value_B1, wanted_B1, rtol=1e-12, atol=0, strict=True)


def test_expression_gradient_of_dtkd_written_as_text_is_that_of_its_formula() -> None:
    names = _torch_names()
    student_B1 = names["student_max"].requires_grad_()
    value_B1 = parse("2*max/(max+student_max)*4").evaluate(names, torch, _torch_constant)
    (gradient_B1,) = torch.autograd.grad(value_B1.sum(), student_B1)
    formula_B1 = 2 * names["max"] / (names["max"] + student_B1) * 4
    (wanted_B1,) = torch.autograd.grad(formula_B1.sum(), student_B1)
    assert wanted_B1.abs().min() > 0
    torch.testing.assert_close(gradient_B1, wanted_B1, rtol=1e-14, atol=0)


STUDENT_TEXTS = [text for text, _ in MEANINGS if "student" in text]


@pytest.mark.parametrize("text", STUDENT_TEXTS)
def test_expression_gradients_to_the_student_are_those_of_finite_differences(text: str) -> None:
    expression = parse(text)
    names = [f"student_{name}" for name in expression.student_statistics]

    def value(*students: Tensor) -> Tensor:
        given = _torch_names() | dict(zip(names, students, strict=True))
        result: Tensor = expression.evaluate(given, torch, _torch_constant)
        return result

    assert torch.autograd.gradcheck(value, [_torch_names()[name].requires_grad_() for name in names])


def test_expression_float32_stays_float32() -> None:
    names = {name: values.float() for name, values in _torch_names().items()}
    value_B1 = parse("clip(max ** 2 / log(classes), 1, 16)").evaluate(names, torch, lambda x: torch.full((3, 1), x))
    assert value_B1.dtype == torch.float32


@pytest.mark.parametrize(("module", "constant"), [(np, _numpy_constant), (torch, _torch_constant)], ids=["np", "torch"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_expression_every_function_exists_in_both_modules(
    name: str, module: ModuleType, constant: Callable[[float], Any]
) -> None:
    function = FUNCTIONS[name]
    arguments = [constant(value) for value in (3.0, 1.0, 2.0)[: function.least]]
    if name == "where":
        arguments[0] = arguments[0] > 0
    assert getattr(module, function.attribute)(*arguments).shape == (3, 1)


@pytest.mark.parametrize("text", ["log(min)", "sqrt(min)", "1 / (max - max)", "exp(classes) ** 8", "min ** 0.5"])
def test_expression_outside_a_functions_domain_numpy_warns_unless_the_caller_says_otherwise(text: str) -> None:
    expression = parse(text)
    with pytest.warns(RuntimeWarning):
        expression.evaluate(_numpy_names(), np, _numpy_constant)
    assert not np.isfinite(_on_numpy(expression)).any()


def test_expression_name_that_is_not_given_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="epochs"):
        parse("epochs").evaluate({}, np, _numpy_constant)


# -------------------------------------------------------------------------------------------------- what a text reads


def test_expression_tells_which_names_it_uses() -> None:
    expression = parse("max(std, max) + min(student_std, epoch) / log(classes) + where(mean < student_max, 1, 2)")
    assert expression.names == {"std", "max", "student_std", "epoch", "classes", "mean", "student_max"}
    assert expression.teacher_statistics == ("max", "mean", "std")
    assert expression.student_statistics == ("max", "std")


def test_expression_function_is_not_taken_for_the_statistic_of_its_name() -> None:
    expression = parse("max(min(1, 2), 3)")
    assert expression.names == frozenset()
    assert expression.teacher_statistics == expression.student_statistics == ()


def test_expression_names_are_what_the_cache_holds() -> None:
    assert sorted(TEACHER_STATISTICS) == sorted(STATISTICS)
    assert parse(f"max({', '.join(NAMES)})").names == set(NAMES) == set(VALUES)


def test_expression_is_frozen_and_hashed_by_its_text() -> None:
    expression = parse("max / 2")
    assert expression.text == "max / 2"
    parse.cache_clear()
    assert {expression: 1}[parse("max / 2")] == 1
    assert expression != parse("max / 3")
    with pytest.raises(dataclasses.FrozenInstanceError):
        expression.text = "min"  # type: ignore[misc]  # the mistake that is refused


def test_expression_module_loads_neither_arrays_nor_pydantic() -> None:
    code = (
        "import sys, workers.methods.expression; print([m for m in ('numpy', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------- refusals

NO_PLACE = "is not allowed. Allowed: numbers, names, functions, + - * / **"
REFUSALS: dict[str, tuple[str, int, str]] = {
    # Words.
    "unknown name": ("clip(maxx, 1, 2)", 6, "unknown name 'maxx'. Did you mean 'max'? Names: max, min, "),
    "unknown function": ("1 + mx(1, 2)", 5, "unknown function 'mx'. Did you mean 'max'? Names: "),
    "nothing near": ("entropy", 1, "unknown name 'entropy'. Names: "),
    "another case": ("2 * STD", 5, "unknown name 'STD'. Did you mean 'std'?"),
    "function as name": ("2 * log", 5, "'log' is a function: write log(...). Names: "),
    "name as function": ("2 * std (1)", 5, "'std' is a name, not a function. Names: "),
    "import": ("__import__('os')", 1, "unknown function '__import__'. Names: "),
    "lambda": ("(lambda: 1)", 2, "unknown name 'lambda'"),
    "generator": ("max(std for std in max)", 9, "unknown name 'for'"),
    "conditional": ("1 if max else 2", 3, "unknown name 'if'"),
    "not": ("not max", 1, "unknown name 'not'"),
    "and": ("where(1 < 2 and 2 < 3, 1, 2)", 13, "unknown name 'and'"),
    "is": ("1 is 1", 3, "unknown name 'is'"),
    "await": ("await max", 1, "unknown name 'await'"),
    "True": ("True", 1, "unknown name 'True'"),
    "None": ("None", 1, "unknown name 'None'"),
    "nan": ("nan", 1, "unknown name 'nan'"),
    "f-string": ("f'{max}'", 1, "unknown name 'f'"),
    # Signs.
    "string": ("1 + 'x'", 5, f'"\'" {NO_PLACE}'),
    "attribute": ("max.real", 4, f"'.real' {NO_PLACE}"),
    "list comprehension": ("[max]", 1, f"'[' {NO_PLACE}"),
    "subscript": ("max[0]", 4, f"'[' {NO_PLACE}"),
    "dict": ("{1: 2}", 1, f"'{{' {NO_PLACE}"),
    "walrus": ("(max := 2)", 6, f"':' {NO_PLACE}"),
    "keyword": ("clip(max, 1, max=2)", 17, f"'=' {NO_PLACE}"),
    "equal": ("where(max == 2, 1, 2)", 11, f"'=' {NO_PLACE}"),
    "unequal": ("where(max != 2, 1, 2)", 11, f"'!' {NO_PLACE}"),
    "modulo": ("max % 2", 5, f"'%' {NO_PLACE}"),
    "bitwise": ("~max", 1, f"'~' {NO_PLACE}"),
    "comment": ("max # 2", 5, f"'#' {NO_PLACE}"),
    "statement": ("max; min", 4, f"';' {NO_PLACE}"),
    "fullwidth letters": ("2 * ｍax", 5, rf"'\uff4d' {NO_PLACE}"),
    "fullwidth digit": ("max２", 4, rf"'\uff12' {NO_PLACE}"),
    "Arabic digit": ("2 * ٣", 5, rf"'\u0663' {NO_PLACE}"),
    "lone surrogate": ("\ud800", 1, rf"'\ud800' {NO_PLACE}"),
    "newline": ("max\n", 4, rf"'\n' {NO_PLACE}"),
    "tab": ("\tmax", 1, rf"'\t' {NO_PLACE}"),
    "NUL": ("max\0", 4, rf"'\x00' {NO_PLACE}"),
    "continuation": ("max \\", 5, rf"'\\' {NO_PLACE}"),
    # Numbers.
    "imaginary": ("1j", 1, f"'1j' {NO_PLACE}"),
    "hexadecimal": ("0x10", 1, f"'0x10' {NO_PLACE}"),
    "underscore": ("1_000", 1, f"'1_000' {NO_PLACE}"),
    "leading zero": ("2 * 01", 5, f"'01' {NO_PLACE}"),
    "two points": ("1.2.3", 1, f"'1.2.3' {NO_PLACE}"),
    "glued keyword": ("1if 1else 2", 1, f"'1if' {NO_PLACE}"),
    "infinite": ("max + 1e400", 7, "'1e400' is not allowed here; it must be a plain number from -1e+09 to 1e+09"),
    "too large": ("1000000001", 1, "'1000000001' is not allowed here; it must be a plain number from"),
    "400 digits": ("1" + "0" * 399, 1, f"'1{'0' * 36}...' is not allowed here; it must be"),
    # Grammar.
    "empty": ("", 1, "the expression is empty. Allowed: "),
    "blank": ("   ", 1, "the expression is empty. Allowed: "),
    "unfinished": (" 1 + ", 5, "invalid syntax at the end. Allowed: "),
    "unclosed": (" max(1, (2", 9, "'(' was never closed at '('. Allowed: "),
    "unopened": ("  max)", 6, "unmatched ')' at ')'. Allowed: "),
    "no operator": ("max  min", 6, "invalid syntax at 'min'. Allowed: "),
    "nothing": ("2 * ()", 5, f"'()' {NO_PLACE}"),
    "tuple": (" (1, max)", 2, f"'(1, max)' {NO_PLACE}"),
    "floor": ("  max // 2", 3, f"'max // 2' {NO_PLACE}"),
    "shift": ("max << 2", 1, f"'max << 2' {NO_PLACE}"),
    # Calls.
    "called number": ("2 * 1(2)", 5, "'1' is not a function. Names: "),
    "called twice": ("max(1, 2)(3)", 1, "'max(1, 2)' is not a function. Names: "),
    "starred": ("min(1, *max)", 8, f"'*max' {NO_PLACE}"),
    "double starred": ("min(1, 2, **max)", 11, "'**max' is not allowed: arguments are given by their order alone"),
    "too few": ("2 * min(max)", 5, "'min(max)' has the wrong number of arguments, 1; min takes 2 or more"),
    "none": ("log()", 1, "'log()' has the wrong number of arguments, 0; log takes 1"),
    "too many": ("clip(1, 2, 3, 4)", 1, "'clip(1, 2, 3, 4)' has the wrong number of arguments, 4; clip takes 3"),
    # Comparisons.
    "outside": ("2 * (max < 2)", 6, "'max < 2' may only be one of < <= > >=, once, and only as the condition of where"),
    "elsewhere in where": ("where(1 < 2, 1 < 2, 3)", 14, "'1 < 2' may only be one of"),
    "inside a condition": ("where((1 < 2) < 3, 1, 2)", 8, "'1 < 2' may only be one of"),
    "chained": ("where(1 < max < 3, 1, 2)", 7, "'1 < max < 3' may only be one of"),
    "no condition": ("where(max, 1, 2)", 7, "'max' is no condition; where takes one of a < b, a <= b, a > b, a >= b"),
    "number": ("where(1, 1, 2)", 7, "'1' is no condition"),
    # Exponents.
    "power of a name": ("2**max", 4, "'max' is not allowed here; it must be a plain number from -8 to 8"),
    "large power": ("2**9", 4, "'9' is not allowed here; it must be a plain number from -8 to 8"),
    "large negative power": ("2 ** -8.5", 6, "'-8.5' is not allowed here"),
    "two signs": ("2 ** --1", 6, "'--1' is not allowed here"),
    "power of a power": ("2 ** 2 ** 2", 6, "'2 ** 2' is not allowed here"),
    # Bounds.
    "too long": ("1" * 501, 501, "501 characters; at most 500 are allowed"),
    "too many signs": ("-" * 300 + "1", 21, f"'{'-' * 37}...' is nested too deeply; at most 20 levels are allowed"),
    "too many terms": ("+".join(["max"] * 25), 1, "'max+max+max+max+max' is nested too deeply"),
    "too many parentheses": ("(" * 100 + "1" + ")" * 100, 21, "'(' is nested too deeply; at most 20 levels"),
    "too many nodes": (f"min({','.join(['1'] * 200)})", 403, "'1' is one too many; at most 200 numbers, names and"),
}


@pytest.mark.parametrize(("text", "place", "problem"), REFUSALS.values(), ids=REFUSALS)
def test_expression_anything_else_is_refused_where_it_stands(text: str, place: int, problem: str) -> None:
    with pytest.raises(InvalidMethod) as caught:
        parse(text)
    shown = ascii(text if len(text) <= 80 else text[:77] + "...")
    assert str(caught.value).startswith(f"expression {shown}, position {place}: {problem}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "count"), [("clip", 3), ("log", 1), ("exp", 1), ("sqrt", 1), ("abs", 1), ("tanh", 1), ("where", 3)]
)
def test_expression_function_of_so_many_arguments_takes_no_other_number(name: str, count: int) -> None:
    arguments = ["1 < 2" if name == "where" else "1", *["2"] * count]
    parse(f"{name}({', '.join(arguments[:count])})")
    for wrong in (count - 1, count + 1):
        with pytest.raises(InvalidMethod, match=f"wrong number of arguments, {wrong}; {name} takes {count}"):
            parse(f"{name}({', '.join(arguments[:wrong])})")


def test_expression_refusal_of_a_word_lists_every_name_and_function() -> None:
    with pytest.raises(InvalidMethod) as caught:
        parse("temperature")
    assert str(caught.value).endswith(f"Names: {', '.join(NAMES)}; functions: {', '.join(FUNCTIONS)}")


@pytest.mark.parametrize(
    "text",
    [
        "1" * 7 + " " * 493,
        "-" * 19 + "1",
        "+".join(["max"] * 20),
        "(" * 20 + "1" + ")" * 20,
        f"min({','.join(['1'] * 199)})",
        f"min({','.join(['(1)'] * 30)})",
        "2 ** -8 + 1e9",
    ],
)
def test_expression_text_at_the_bounds_is_read_and_computed(text: str) -> None:
    assert np.isfinite(_on_numpy(parse(text))).all()


@pytest.mark.parametrize(
    "text",
    [
        "max.real",
        "max[0]",
        "[max]",
        "[max for max in min]",
        "{max: 1}",
        "lambda: 1",
        "(max := 1)",
        "1 if max else 2",
        "f'{max}'",
        "'x'",
        "True",
        "None",
        "...",
        "1j",
        "__import__",
        "log",
        "max and min",
        "not max",
        "~max",
        "max % 2",
        "max @ min",
        "eval(1)",
        "std(1)",
        "log.real(1)",
        "clip(1, 2, high=3)",
        "where(1 == 2, 1, 2)",
        "where(1 in max, 1, 2)",
        "where(True, 1, 2)",
        "2 ** True",
        "(yield)",
        "await max",
    ],
)
def test_expression_walk_alone_refuses_what_the_check_of_words_would_have(text: str) -> None:
    with pytest.raises(InvalidMethod, match="position"):
        _Reading(text, 0).node(ast.parse(text, mode="eval").body, 1)


def test_expression_stack_that_is_nearly_full_is_no_other_error() -> None:
    text, limit = "-" * 499 + "1", sys.getrecursionlimit()
    parse.cache_clear()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)
    try:
        with pytest.raises(InvalidMethod, match="is nested too deeply"):
            parse(text)
    finally:
        sys.setrecursionlimit(limit)


# ---------------------------------------------------------------------------------------------------------- any texts

numbers = st.one_of(st.integers(0, 99).map(str), st.floats(0, 1e9).map(repr), st.sampled_from(["1.", ".5", "2e-3"]))


def _compound(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts made of texts: few parentheses, so that precedence and associativity matter."""

    def call(name: str, *arguments: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*arguments).map(lambda given: f"{name}({', '.join(given)})")

    comparison = st.tuples(part, st.sampled_from(["<", "<=", ">", ">="]), part).map(" ".join)
    return st.one_of(
        st.lists(st.tuples(st.sampled_from([*"+-*/", " - ", " / "]), part).map("".join), min_size=2, max_size=6).map(
            lambda terms: f"0{''.join(terms)}"
        ),
        st.tuples(st.sampled_from("+-"), part).map("".join),
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["2", "-1", "+.5", "3.0", " -8"])).map("**".join),
        part.map("({})".format),
        *(call(name, part) for name in ("log", "exp", "sqrt", "abs", "tanh")),
        *(call(name, *[part] * count) for name in ("min", "max") for count in (2, 3)),
        call("clip", part, part, part),
        call("where", comparison, part, part),
    )


valid_text = st.recursive(st.one_of(st.sampled_from(NAMES), numbers), _compound, max_leaves=8)


PIECES = (*NAMES, *(f"{name}(" for name in FUNCTIONS), *"()()()+-*/<>,,.= \n\0'\"[]{}:;#\\~@%&|^!ｍé", "**", "<=", ">=")
PIECES += ("1", "0.5", "2e3", "1e400", "1j", "0x1", "8", " if ", " else ", " and ", " not ", " is ", " in ", "lambda")
any_text = st.one_of(
    st.text(max_size=520),
    st.lists(st.sampled_from(PIECES), max_size=120).map("".join),
    st.tuples(valid_text, st.integers(0, 60), st.integers(0, 3), st.sampled_from(["", *PIECES])).map(
        lambda edit: edit[0][: edit[1]] + edit[3] + edit[0][edit[1] + edit[2] :]
    ),
)


@settings(max_examples=600, derandomize=True)
@given(text=any_text)
@example(text="1if 1else 2")
@example(text="1(2)")
@example(text="1 is 1")
@example(text=r"'\d'")
def test_expression_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    # Under pytest a warning is an error, which for a SyntaxWarning is the SyntaxError that parse handles.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            expression = parse(text)
        except InvalidMethod as refusal:
            place = re.search(r", position (\d+): ", str(refusal))
            assert place
            assert 1 <= int(place[1]) <= len(text) + 1
        else:
            assert _on_numpy(expression).shape == (3, 1)
    assert not seen


def _least(*values: Float64) -> Float64:
    return np.where(np.isnan(values).any(axis=0), np.nan, np.min(values, axis=0))


def _greatest(*values: Float64) -> Float64:
    return -_least(*(-value for value in values))


def _by_python(text: str) -> Float64:
    """The value of a text that this file has made, by Python's own evaluation: an oracle for the grammar."""
    # A number is an array, so that 1/0 is infinite, but an exponent stays one; max( and max are two things.
    source = re.sub(
        r"(\*\* *[-+]?)?(?<![\w.])(\d+\.?\d*|\.\d+)(e[-+]?\d+)?",
        lambda found: found[0] if found[1] else f"full({found[0]})",
        text,
    )
    source = re.sub(r"\b(max|min)\(", r"of_\1(", source)
    functions = {
        "of_min": _least,
        "of_max": _greatest,
        "clip": lambda x, low, high: _least(_greatest(x, low), high),
        "where": lambda condition, a, b: np.where(condition, a, b),
        "full": lambda value: _numpy_constant(float(value)),
        **{name: getattr(np, name) for name in ("log", "exp", "sqrt", "abs", "tanh")},
    }
    with np.errstate(all="ignore"):
        value_B1: Float64 = eval(source, {"__builtins__": {}}, {**_numpy_names(), **functions})
    return value_B1


@settings(max_examples=400, derandomize=True)
@given(text=valid_text)
def test_expression_valid_text_has_the_value_that_python_gives_it(text: str) -> None:
    np.testing.assert_array_equal(_on_numpy(parse(text)), _by_python(text), strict=True)
