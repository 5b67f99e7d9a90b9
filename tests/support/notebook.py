"""Python blocks of a document, run one after the other as in a notebook. It needs the standard library alone.

``python notebook.py DOCUMENT [OLD NEW]...`` runs them in the working directory, with each OLD replaced.
"""

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_document(document: Path, changes: Mapping[str, str]) -> None:
    """Runs the Python blocks of a document; each text in ``changes`` stands for another."""
    names: dict[str, Any] = {}
    for code in _BLOCK.findall(document.read_text()):
        for old, new in changes.items():
            code = code.replace(old, new)
        compiled = compile(code, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)


if __name__ == "__main__":
    _, document, *changes = sys.argv
    run_document(Path(document), dict(zip(changes[::2], changes[1::2], strict=True)))
