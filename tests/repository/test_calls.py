"""Calls that a reader can follow: what is passed by position can be told apart without looking it up."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.repository.test_architecture import ROOT, source_files

POSITIONAL_MAX = 4
# Functions of libraries that take any number of equals, or have no names for their arguments.
VARIADIC = frozenset(
    {
        "TypeVar",
        "apply",
        "create_table",
        "mmap",
        "pack",
        "responses",
        "run_sync",
        "save_for_backward",
        "select",
        "Sequential",
        "syscall",
    }
)
# Called with more from before this rule; each name that goes from here is one that cannot come back.
FORMER = frozenset(
    {
        "BatchInputs",
        "EvaluationFeed",
        "Group",
        "LOSSES",
        "LiveBatch",
        "PictureStream",
        "RunState",
        "TrainingFeed",
        "ViewParameters",
        "TermResult",
        "_answer",
        "_distil",
        "_draw_resized_crop",
        "explain_not_finite",
        "_preview_term",
        "_row_starts",
        "_temperatures",
        "cls",
        "choose_precision",
        "draw",
        "event_row",
        "split_divergence",
    }
)


def long_calls(path: Path) -> Iterator[tuple[str, int]]:
    """Name of what is called with more than ``POSITIONAL_MAX`` arguments by position, and the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and len(node.args) > POSITIONAL_MAX:
            called = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            yield called.attr if isinstance(called, ast.Attribute) else ast.unparse(called), node.lineno


def test_calls_pass_at_most_four_arguments_by_position() -> None:
    wrong = []
    for path in source_files():
        for name, line in long_calls(path):
            if name not in VARIADIC | FORMER:
                wrong.append(f"{path.relative_to(ROOT)}:{line} passes more than {POSITIONAL_MAX} to {name} by position")
    assert not wrong
