"""One function changes states: no other code of the service writes the column, and this one adds the event."""

import ast
import re
from collections.abc import Iterator

import pytest

from service.db.models import RunRecord
from service.db.states import State
from service.db.transitions import assign, end_of
from tests.repository.test_architecture import ROOT, source_files

_SQL = re.compile(r"\bupdate\b.*\bset\b.*\bstate\b", re.IGNORECASE | re.DOTALL)
_ROWS = frozenset({"JobRecord", "RunRecord"})


def writers(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """The functions in which a column ``state`` may be written, and the lines.

    It is written by an assignment to an attribute, ``setattr``, ``values(state=...)`` or a dict of columns, a new row's
    argument, or SQL text. A dict with a ``type`` is an event.
    """
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        match node:
            case ast.Attribute(attr="state", ctx=ast.Store()):
                yield name, node.lineno
            case ast.Call(func=ast.Name(id="setattr")):
                yield name, node.lineno
            case ast.Call(func=ast.Attribute(attr="values") | ast.Name()) if any(
                k.arg == "state" for k in node.keywords
            ):
                if isinstance(node.func, ast.Attribute) or (isinstance(node.func, ast.Name) and node.func.id in _ROWS):
                    yield name, node.lineno
            case ast.Dict():
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if "state" in keys and "type" not in keys:
                    yield name, node.lineno
            case ast.Constant(value=str(text)) if _SQL.search(text):
                yield name, node.lineno
        yield from writers(node, name)


@pytest.mark.parametrize(
    ("runs", "state"),
    [
        ("succeeded", "succeeded"),
        ("succeeded succeeded cancelled", "succeeded"),
        ("succeeded cancelled", "succeeded"),
        ("succeeded cancelled cancelled", "cancelled"),
        ("cancelled", "cancelled"),
        ("succeeded succeeded cancelled failed", "failed"),
        ("cancelled cancelled cancelled failed", "failed"),
    ],
)
def test_end_of_a_job_is_what_most_of_its_runs_are_unless_one_has_failed(runs: str, state: str) -> None:
    found, error = end_of(RunRecord(name=name, state=State(name)) for name in runs.split())
    assert found == state
    assert (error is not None) == (state == "failed")


@pytest.mark.parametrize(
    "line",
    [
        "row.state = State.PAUSED",
        "job.attempt, job.state = 1, State.PAUSED",
        "setattr(row, name, value)",
        "update(RunRecord).values(state=State.PAUSED)",
        "session.execute(update(RunRecord), {'id': id, 'state': State.PAUSED})",
        "session.add(JobRecord(id=id, state=State.RUNNING))",
        "session.execute(text('UPDATE jobs SET attempt = 1, state = :state'))",
    ],
)
def test_writers_of_states_are_found_however_they_write(line: str) -> None:
    assert list(writers(ast.parse(f"def f():\n    {line}"))) == [("f", 2)]


def test_states_are_written_by_transition_alone() -> None:
    """What has no SQLAlchemy has no row of a session: it keeps states in memory, or as text."""
    found = set()
    for path in source_files():
        text = path.read_text()
        if re.search(r"^(from|import) sqlalchemy\b", text, re.MULTILINE):
            name = path.relative_to(ROOT).as_posix()
            found |= {(name, function) for function, _ in writers(ast.parse(text))}
    here = "service/db/transitions.py"
    # The second one refuses a state, see below.
    assert found == {(here, "transition"), (here, "assign")}


def test_assign_refuses_a_state_and_sets_other_columns() -> None:
    run = RunRecord(id="run", state=State.QUEUED)
    assign(run, {"epoch": 3})
    assert run.epoch == 3
    with pytest.raises(TypeError, match="transition alone"):
        assign(run, {"epoch": 4, "state": State.PAUSED})
    assert (run.state, run.epoch) == (State.QUEUED, 3)
