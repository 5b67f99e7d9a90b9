"""Files that a reader can take in, and docstrings that begin with the word that one searches for."""

import ast
from pathlib import Path

from tests.repository.module_sizes import GENERATED, lines_here, lines_of, sizes
from tests.repository.test_architecture import ROOT, source_files

LINES_MAX = 300
# A docstring with one of these for its first word answers a question that nobody has asked yet.
RIDDLES = frozenset({"How", "What", "Where", "Who", "Whoever", "Whose", "Why"})


def test_files_have_at_most_300_lines() -> None:
    longer = {name: lines for name, lines in lines_here().items() if lines > LINES_MAX}
    assert not longer, "split each along a seam: one responsibility a file"


def riddles(path: Path) -> list[str]:
    """Names of what a file documents with a riddle; the file's own name for its module docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) and text.split()[0] in RIDDLES:
            found.append(path.name if isinstance(node, ast.Module) else node.name)
    return found


def test_docstrings_begin_with_the_word_that_one_searches_for() -> None:
    named = [f"{path.relative_to(ROOT)}: {name}" for path in source_files() for name in riddles(path)]
    assert not named, "begin each with the noun or the verb that a reader would search for"


def test_module_sizes_are_of_modules_that_somebody_reads() -> None:
    """Of the last commit as of this checkout: the figures of both are compared."""
    for lines in (lines_here(), lines_of("HEAD")):
        assert "store/writer.py" in lines
        assert not [name for name in lines if "/migrations/" in name or name == GENERATED]


def test_module_sizes_count_lines_and_modules_of_a_folder() -> None:
    lines = {f"store/{number}.py": number for number in range(1, 23)} | {"store/__init__.py": 0, "workers/a/b.py": 7}
    found = sizes(lines)
    assert (found.modules, found.lines, found.median, found.p90, found.largest) == (24, 260, 11, 20, 22)
    assert (found.folders, found.fullest) == (2, (("store", 22),))
