"""Reading paths of a job, a step and an event get no longer; ``python -m tests.repository.reading_paths`` prints."""

from dataclasses import astuple
from pathlib import Path

import pytest

from tests.repository import reading_paths
from tests.repository.reading_paths import EVENT, JOB, STEP, Entry, Size, size_of, trace

# Where they stand, lines rounded up; a job is at its goal, see the module's output. Lower a bar with the way.
BARS = {
    "job": (JOB, Size(functions=62, files=20, lines=1800, changes_of_file=25)),
    "step": (STEP, Size(functions=26, files=8, lines=600, changes_of_file=14)),
    "event": (EVENT, Size(functions=7, files=5, lines=133, changes_of_file=4)),
}
LOWER = """
def begin():
    end()
    hand_over(Thread(target=work))

def end(): ...
def work(): ...
def unrelated(): ...

class Thing:
    def __init__(self): ...
"""
UPPER = """
from lower import Thing, end

@decorated
def start():
    return Thing(), end()
"""


@pytest.mark.parametrize("name", BARS)
def test_reading_paths_get_no_longer(name: str) -> None:
    path, bar = BARS[name]
    size = size_of(trace(path))
    longer = [found > allowed for found, allowed in zip(astuple(size), astuple(bar), strict=True)]
    assert not any(longer), f"{size}, at most {bar}"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lower.py").write_text(LOWER)
    (tmp_path / "upper.py").write_text(UPPER)
    monkeypatch.setattr(reading_paths, "ROOT", tmp_path)
    reading_paths._tree.cache_clear()
    reading_paths._imported.cache_clear()


@pytest.mark.usefixtures("sources")
def test_trace_says_how_each_function_is_reached() -> None:
    path = ("upper:start", "lower:Thing.__init__", "lower:begin", "lower:end", "lower:work", "lower:unrelated")
    reached = [entry.reached for entry in trace(path)]
    assert reached == [
        "the beginning",
        "called by start",
        "by data",
        "called by begin",
        "handed over by begin",
        "by data",
    ]


@pytest.mark.usefixtures("sources")
def test_trace_finds_no_caller_in_a_file_that_cannot_have_the_function() -> None:
    """Many functions share a name such as poll or begin."""
    assert [entry.reached for entry in trace(("lower:begin", "upper:start"))] == ["the beginning", "by data"]


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("gone", ["upper:begin", "elsewhere:start", "lower:Thing", "lower:Thing.end"])
def test_trace_refuses_a_function_that_is_not_there(gone: str) -> None:
    with pytest.raises(LookupError, match="reading_paths"):
        trace(("upper:start", gone))


def test_size_of_a_path_counts_a_function_once_and_each_change_of_file() -> None:
    one, other = Entry("a.py", "f", 10, ""), Entry("b.py", "g", 5, "")
    assert size_of([one, other, one]) == Size(functions=3, files=2, lines=15, changes_of_file=2)
