"""Rows of a manifest, a CSV or JSONL file that lists pictures: path, label and split of each. Light.

A row at a time is in memory, and no line is longer than ``LINE_MAX_CHARACTERS``. What is wrong with rows is counted,
and the first ten of each fault are named, so that one answer tells all there is to mend.
"""

import csv
import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from workers.data.kinds.base import SPLIT_NAMES
from workers.errors import InvalidDataset
from workers.texts import LISTED_MAX, listed, shortened

if TYPE_CHECKING:
    from workers.events import Split

LINE_MAX_CHARACTERS = 1 << 16
FILE_MAX_BYTES = 1 << 30
CSV_SUFFIXES: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
_SPLIT_OF: "Mapping[str, Split]" = {name: split for split, names in SPLIT_NAMES.items() for name in names}


class Columns(NamedTuple):
    """Names of a manifest's columns; a manifest may lack that of the split."""

    path: str
    label: str
    split: str


class Row(NamedTuple):
    """A row of a manifest.

    Attributes:
        line: its number, from 1.
        path: as it is written, normalised; relative, without ``..``.
        label: an integer as its digits.
    """

    line: int
    path: str
    label: str
    split: "Split"


class Faults:
    """Rows that cannot be taken, by what is wrong with them."""

    def __init__(self) -> None:
        self._named: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, fault: str, line: int, value: object) -> None:
        """Count a row; ``fault`` is what rows are that have it, in the plural."""
        self._counts[fault] = self._counts.get(fault, 0) + 1
        named = self._named.setdefault(fault, [])
        if len(named) < LISTED_MAX:
            named.append(f"{shortened(repr(value), 80)} in line {line}")

    def check(self, path: Path) -> None:
        """Raise InvalidDataset if there are any."""
        if not self._counts:
            return
        sentences = []
        for fault, count in self._counts.items():
            more = f" and {count - LISTED_MAX} more" if count > LISTED_MAX else ""
            sentences.append(f"{count:,} {fault}: {', '.join(self._named[fault])}{more}")
        raise InvalidDataset(f"{path}: {'; '.join(sentences)}")


def read_rows(path: Path, columns: Columns, faults: Faults) -> Iterator[Row]:
    """Rows that can be taken, in the order of the file; ``faults`` counts the others.

    Without a column of splits, every row is of the training split.

    Raises:
        InvalidDataset: it is neither CSV nor JSONL, not UTF-8, lacks a column, or is too long or has a line that is.
    """
    has_split: bool | None = None
    try:
        if (size_bytes := path.stat().st_size) > FILE_MAX_BYTES:
            raise InvalidDataset(f"{path} has {size_bytes:,} bytes, a manifest may have at most {FILE_MAX_BYTES:,}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, given in _records(path, file, columns):
                if has_split is None:
                    _check_columns(path, given, columns)
                    has_split = columns.split in given
                row = _row(line, given, columns, faults, has_split=has_split)
                if row is not None:
                    yield row
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise InvalidDataset(f"{path} cannot be read as CSV: {error}") from error
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror}") from error


def _check_columns(path: Path, first: Mapping[str, Any], columns: Columns) -> None:
    missing = [repr(name) for name in (columns.path, columns.label) if name not in first]
    if missing:
        raise InvalidDataset(
            f"{path} lacks the columns {', '.join(missing)}; it has {listed(repr(name) for name in first)}: give "
            "path_column and label_column"
        )


def _records(path: Path, file: TextIO, columns: Columns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        yield from _json_records(path, file)
    elif suffix in CSV_SUFFIXES:
        reader = csv.DictReader(_lines(path, file), delimiter=CSV_SUFFIXES[suffix], skipinitialspace=True)
        for record in reader:
            yield reader.line_num, record
    else:
        known = ", ".join((*CSV_SUFFIXES, *JSONL_SUFFIXES))
        raise InvalidDataset(f"{path} is no manifest by its name; it has to end with one of {known}")


def _json_records(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(path, file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidDataset(f"{path}: line {number} is no JSON ({shortened(error)})") from error
        if not isinstance(record, dict):
            raise InvalidDataset(f"{path}: line {number} is {shortened(line.strip(), 80)}, not a JSON object")
        yield number, record


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_MAX_CHARACTERS + 1):
        number += 1
        if len(line) > LINE_MAX_CHARACTERS:
            raise InvalidDataset(f"{path}: line {number} has more than {LINE_MAX_CHARACTERS} characters")
        yield line


def _row(line: int, record: Mapping[str, Any], columns: Columns, faults: Faults, *, has_split: bool) -> Row | None:
    """Row of a record; ``has_split`` is whether the first one has a split: all have one, or none."""
    path, label = record.get(columns.path), _label(record.get(columns.label))
    if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        faults.add("paths are not allowed (relative ones, without '..', are)", line, path)
        return None
    if label is None:
        faults.add("rows have no label (a name, or an integer from 0)", line, record.get(columns.label))
        return None
    given = record.get(columns.split) if has_split else None if columns.split in record else "train"
    split = _SPLIT_OF.get(given.strip().lower()) if isinstance(given, str) else None
    if split is None:
        known = ", ".join(_SPLIT_OF)
        faults.add(f"rows are of an unknown split (known are {known}, in any case)", line, given)
        return None
    return Row(line, posixpath.normpath(path), label, split)


def _label(given: object) -> str | None:
    """Label as text; None for none: -1 is no class anywhere."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return None
    text = str(given).strip()
    return None if text in ("", "-1") else text
