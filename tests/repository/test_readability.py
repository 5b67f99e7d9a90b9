"""Files that a reader can take in, and docstrings that begin with the word that one searches for."""

import ast
from pathlib import Path

from tests.repository.test_architecture import ROOT, source_files

LINES_MAX = 300
GENERATED = ROOT / "service/client/documents.py"
# A docstring with one of these for its first word answers a question that nobody has asked yet.
RIDDLES = frozenset({"How", "What", "Where", "Who", "Whoever", "Whose", "Why"})


def test_files_have_at_most_300_lines() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in source_files()
        # The documents of the client are generated: a list that nobody edits.
        if "migrations" not in path.parts and path != GENERATED
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
    named = [f"{path.relative_to(ROOT)}: {name}" for path in source_files() for name in riddles(path)]
    assert not named, "begin each with the noun or the verb that a reader would search for"
