"""Files that a reader can take in, and docstrings that begin with the word that one searches for; bars only go down."""

import ast
from collections import Counter
from pathlib import Path

from tests.repository.test_architecture import ROOT, source_files

LINES_MAX = 300
# A docstring with one of these for its first word answers a question that nobody has asked yet.
RIDDLES = frozenset({"How", "What", "Where", "Who", "Whoever", "Whose", "Why"})
# Docstrings of a package that begin so from before this rule, at most so many.
FORMER_RIDDLES = {
    "service/api": 12,
    "service/db": 7,
    "workers/methods": 14,
    "workers/objective": 6,
    "workers/teacher": 5,
    "workers/training": 27,
}


def test_files_have_at_most_300_lines() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in source_files()
        if "migrations" not in path.parts
    }
    longer = {name: lines for name, lines in lengths.items() if lines > LINES_MAX}
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
    found: Counter[str] = Counter()
    named = []
    for path in source_files():
        package = "/".join(path.relative_to(ROOT).parts[:2])
        new = riddles(path)
        found[package] += len(new)
        named += [f"{path.relative_to(ROOT)}: {name}" for name in new if package not in FORMER_RIDDLES]
    more = {package: count for package, count in found.items() if count > FORMER_RIDDLES.get(package, 0)}
    assert not more, named
