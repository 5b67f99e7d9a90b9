"""Sizes of modules and folders of the three layers. ``python -m`` prints those of this checkout, or of a revision.

Migrations and the generated documents of the client are left out: nobody reads them from end to end.
"""

import io
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tests.repository.test_architecture import LAYERS, ROOT, source_files

# The documents of the client are generated: a list that nobody edits.
GENERATED = "service/client/documents.py"
# A folder with more is listed: a reader looks for a name in it, and does not know all that are there.
MODULES_MANY = 20


@dataclass(frozen=True)
class Sizes:
    """Sizes of modules and folders.

    Attributes:
        median, p90, largest: lines of a module.
        folders: that have a module.
        fullest: folders with more than ``MODULES_MANY`` modules and how many those are, the fullest first.
    """

    modules: int
    lines: int
    median: int
    p90: int
    largest: int
    folders: int
    fullest: tuple[tuple[str, int], ...]


def lines_here() -> dict[str, int]:
    """Lines of each module of this checkout."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in source_files()}
    return {name: len(path.read_text().splitlines()) for name, path in paths.items() if _is_read(name)}


def lines_of(revision: str) -> dict[str, int]:
    """Lines of each module as of a revision. Raises CalledProcessError: git does not have it."""
    archive = subprocess.run(["git", "archive", revision, *LAYERS], stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout
    lines = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            file = files.extractfile(member) if member.name.endswith(".py") and _is_read(member.name) else None
            if file is not None:
                lines[member.name] = len(file.read().decode().splitlines())
    return lines


def _is_read(name: str) -> bool:
    return "migrations" not in PurePosixPath(name).parts and name != GENERATED


def sizes(lines: Mapping[str, int]) -> Sizes:
    """Sizes of modules with so many lines each, by name."""
    ordered = sorted(lines.values())
    modules = Counter(str(PurePosixPath(name).parent) for name in lines if not name.endswith("/__init__.py"))
    return Sizes(
        modules=len(ordered),
        lines=sum(ordered),
        median=ordered[len(ordered) // 2],
        p90=ordered[len(ordered) * 9 // 10],
        largest=ordered[-1],
        folders=len(modules),
        fullest=tuple((name, count) for name, count in modules.most_common() if count > MODULES_MANY),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the sizes of this checkout, or of the revision that is named."""
    revisions = sys.argv[1:] if arguments is None else arguments
    found = sizes(lines_of(revisions[0]) if revisions else lines_here())
    sys.stdout.write(
        f"{found.modules} modules, {found.lines} lines\n"
        f"lines of a module: median {found.median}, p90 {found.p90}, largest {found.largest}\n"
        f"{found.folders} folders; with more than {MODULES_MANY} modules: {len(found.fullest)}\n"
    )
    sys.stdout.write("".join(f"  {count:>3}  {name}\n" for name, count in found.fullest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
