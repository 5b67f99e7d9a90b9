"""Pictures of one split that are, by a symbolic or hard link, files of another. Light."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.events import Split


@dataclass
class FoundFiles:
    """Picture files of a split, in sample order.

    Attributes:
        inodes: of each file, links followed; a directory's listing tells it without looking at the file.
    """

    paths: list[Path] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)

    def add(self, entry: os.DirEntry[str]) -> None:
        self.paths.append(Path(entry.path))
        self.inodes.append(entry.stat().st_ino if entry.is_symlink() else entry.inode())


def linked_warnings(found: "Mapping[Split, FoundFiles]", root: Path) -> tuple[str, ...]:
    """Warn of pictures that two splits have in common as one file: a sentence for each such pair of splits.

    Args:
        root: the folder that files are named below.
    """
    warnings = []
    for (one, first), (other, second) in itertools.combinations(found.items(), 2):
        same = _same_files(first, second)
        if same:
            here, there = (path.relative_to(root).as_posix() for path in same[0])
            warnings.append(
                f"{len(same):,} of {len(second.paths):,} pictures of {other} are files of {one}, too, by links "
                f"({there} is {here}): what is measured on {other} is not of unseen pictures"
            )
    return tuple(warnings)


def _same_files(first: FoundFiles, second: FoundFiles) -> Sequence[tuple[Path, Path]]:
    common = set(first.inodes).intersection(second.inodes)
    if not common:
        return []
    by_inode = {inode: path for inode, path in zip(first.inodes, first.paths, strict=True) if inode in common}
    pairs = [
        (by_inode[inode], path) for inode, path in zip(second.inodes, second.paths, strict=True) if inode in common
    ]
    # Files of two file systems may have one number.
    return [(one, other) for one, other in pairs if os.path.samefile(one, other)]
