"""Files of a dataset's splits by their names, such as ``data/train-00000-of-00002.parquet`` or ``val/000.tar``.

A client gives a folder, a file, or a pattern below the data root: ``shards/{train,val}-{000000..000127}.tar`` or
``shards/train-*.tar``. A file's split is that which its name has among its words, or else the nearest of its folders.
Where no file names a split, all are the training split.
"""

import fnmatch
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from workers.data.confinement import inside, resolve, root_folder
from workers.data.dataset_kind import SPLIT_NAMES, SPLITS
from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    from workers.events import Split

# Folders below the client's; Hugging Face has ``CONFIGURATION/train/0000.parquet``.
_DEPTH_MAX = 3
# Of a pattern with braces, all together.
_NAMES_MAX = 100_000
# Of patterns with wildcards, each against each name; to compile a pattern takes as long as to try it on some 1,000.
_MATCHES_MAX, _COMPILED_AS = 500_000, 1000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# As Hugging Face numbers the files of a split.
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(\.[^.]*)?")


@dataclass(frozen=True)
class SplitFiles:
    """Files of each split.

    Attributes:
        folder: that the names of the files are relative to, links followed.
        files: in order of name.
    """

    folder: Path
    files: "dict[Split, tuple[Path, ...]]"

    def name(self, path: Path) -> str:
        """Name of a file below the folder."""
        return path.relative_to(self.folder).as_posix()


def find_split_files(path: str, data_root: Path, suffixes: Sequence[str]) -> SplitFiles:
    """Find the files whose name ends in one of ``suffixes`` at a client's path or pattern below ``data_root``.

    Raises:
        InvalidDataset: there are none, a part of the pattern or a numbered file is missing, a name has two splits, or a
            split's files lie in several folders.
    """
    plain, pattern = _parts(path, data_root)
    found, root = resolve(plain, data_root), root_folder(data_root)
    if found.is_file() and not pattern:
        return SplitFiles(found.parent, {"train": (found,)})
    names = sorted(_names(found, root, suffixes, ""))
    if pattern:
        names = _matching(names, pattern, path)
    if not names:
        raise InvalidDataset(f"{found} holds no file *{' or *'.join(suffixes)}: correct the path")
    return SplitFiles(found, _by_split(found, names))


def _parts(path: str, data_root: Path) -> tuple[str, str]:
    """Folder, and the pattern that begins at the first part with one, or "" where the path is one that exists."""
    parts = PurePosixPath(path).parts
    first = next((place for place, part in enumerate(parts) if re.search(r"[*?{[]", part)), None)
    if first is None:
        return path, ""
    try:
        resolve(path, data_root)
    except InvalidDataset:
        return "/".join(parts[:first]) or ".", "/".join(parts[first:])
    return path, ""


def _names(folder: Path, root: Path, suffixes: Sequence[str], prefix: str) -> Iterator[str]:
    """Names of the files below a folder, relative to it; hidden ones are left out, links checked."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_wanted = entry.name.lower().endswith(tuple(suffixes))
            if entry.is_symlink() and (is_wanted or entry.is_dir()):
                inside(Path(entry.path), root)
            if entry.is_dir() and prefix.count("/") < _DEPTH_MAX:
                yield from _names(Path(entry.path), root, suffixes, f"{prefix}{entry.name}/")
            elif is_wanted and entry.is_file():
                yield f"{prefix}{entry.name}"


def _matching(names: Sequence[str], pattern: str, path: str) -> list[str]:
    """Names that a pattern has; each of its alternatives has to have one."""
    chosen: set[str] = set()
    known, matches = set(names), 0
    for one in _expanded(pattern, path):
        is_plain = not re.search(r"[*?[]", one)
        matches += 0 if is_plain else max(len(names), _COMPILED_AS)
        if matches > _MATCHES_MAX:
            raise InvalidDataset(
                f"dataset path {path!r} stands for too many patterns with wildcards, each to be tried on {len(names)} "
                "files: name the files, or give a folder"
            )
        found = {one} & known if is_plain else set(fnmatch.filter(names, one))
        if not found:
            raise InvalidDataset(f"dataset path {path!r}: there is no file {one!r}; correct the pattern")
        chosen |= found
    return sorted(chosen)


def _expanded(pattern: str, path: str) -> Iterator[str]:
    """Patterns without braces that one with braces stands for: ``{a,b}``, ``{000..127}``; each once.

    They are counted before any is built.
    """
    parts = _BRACES.split(pattern)
    count = math.prod(_count(part, path) for part in parts[1::2])
    if count > _NAMES_MAX:
        named = count if count < _NAMES_MAX**2 else f"more than {_NAMES_MAX**2}"
        raise InvalidDataset(f"dataset path {path!r} stands for {named} files, at most {_NAMES_MAX} are allowed")
    choices = [[part] if place % 2 == 0 else _choices(part) for place, part in enumerate(parts)]
    seen: set[str] = set()
    for one in map("".join, itertools.product(*choices)):
        if one not in seen:
            seen.add(one)
            yield one


def _count(inner: str, path: str) -> int:
    """Count the texts that the inner part of braces stands for."""
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.count(",") + 1
    count = int(numbers[2]) - int(numbers[1]) + 1
    if not 1 <= count <= _NAMES_MAX:
        raise InvalidDataset(
            f"dataset path {path!r}: {{{inner}}} is no range of 1 to {_NAMES_MAX} files; the first number comes first"
        )
    return count


def _choices(inner: str) -> Sequence[str]:
    """Texts that the inner part of braces stands for, each once."""
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return list(dict.fromkeys(inner.split(",")))
    first, last = numbers[1], numbers[2]
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def _by_split(folder: Path, names: Sequence[str]) -> "dict[Split, tuple[Path, ...]]":
    grouped: dict[Split | None, list[str]] = {}
    for name in names:
        grouped.setdefault(_split_of(folder, name), []).append(name)
    without = grouped.pop(None, [])
    if without and grouped:
        raise InvalidDataset(
            f"{folder}: the names of {listed(without)} have none of train, validation and test among their words, as "
            "others have: rename or move them, or give a pattern as the path"
        )
    if without:
        grouped = {"train": without}
    for of_split in grouped.values():
        _check_one_folder(folder, of_split)
        _check_numbers(folder, of_split)
    if "train" not in grouped:
        raise InvalidDataset(f"{folder} has no file of the training split, but {listed(names)}")
    return {split: tuple(folder / name for name in grouped[split]) for split in SPLITS if split in grouped}


def _split_of(folder: Path, name: str) -> "Split | None":
    """Split that a name has among its words; the file's own name comes before those of its folders."""
    for part in reversed(PurePosixPath(name).parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
        if len(found) > 1:
            raise InvalidDataset(f"{folder / name} has two splits in its name, {found[0]} and {found[1]}: rename it")
        if found:
            return found[0]
    return None


def _check_one_folder(folder: Path, names: Sequence[str]) -> None:
    """Refuse several configurations of a dataset, which would be read as one."""
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    if len(folders) > 1:
        raise InvalidDataset(
            f"{folder}: the files of one split lie in several folders, {listed(folders)}: give the path of one of "
            "them, or a pattern with one of them"
        )


def _check_numbers(folder: Path, names: Sequence[str]) -> None:
    """Refuse a split of which a file ``NAME-00001-of-00002`` is missing."""
    series: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if numbers := _NUMBERED.fullmatch(name):
            series.setdefault((numbers[1], numbers[3]), set()).add(int(numbers[2]))
    for (stem, of), there in series.items():
        missing = [number for number in range(min(int(of), _NAMES_MAX)) if number not in there]
        if missing:
            raise InvalidDataset(
                f"{folder} lacks {stem}-{missing[0]:0{len(of)}}-of-{of} ({len(missing)} of {int(of)} files are "
                "missing): complete it"
            )
