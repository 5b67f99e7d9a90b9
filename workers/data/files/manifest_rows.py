"""Rows of a manifest, a CSV or JSONL file that lists pictures: path, label and split of each. Light.

A row at a time is in memory, and no line is longer than ``LINE_MAX_CHARACTERS``. What is wrong with rows is counted,
and the first ten of each fault are named, so that one answer tells all there is to mend. A row without a label, or with
-1, is a picture without one.
"""

import csv
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from workers.data.dataset_kind import SPLIT_NAMES
from workers.data.files.faults import Faults
from workers.data.files.named_files import relative_path
from workers.errors import InvalidDataset
from workers.texts import label_text, listed, shortened

if TYPE_CHECKING:
    from workers.events import Split

LINE_MAX_CHARACTERS = 1 << 16
FILE_MAX_BYTES = 1 << 30
CSV_SUFFIXES: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
# Of a header that has none of the file's own: what spreadsheets write where a comma divides decimals.
_OTHER_DELIMITER = ";"
JSONL_SUFFIXES = (".jsonl", ".ndjson")
# A file that lacks this column, and has no other than those of paths and splits, has no labels.
DEFAULT_LABEL = "label"
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
        label: an integer as its digits; None for none.
    """

    line: int
    path: str
    label: str | None
    split: "Split"


def read_rows(path: Path, folder: Path, columns: Columns, faults: Faults) -> Iterator[Row]:
    """Rows that can be taken, in the order of the file; ``faults`` counts the others.

    Without a column of splits, every row is of the training split.

    Args:
        folder: that paths are relative to; absolute ones may lie below it.

    Raises:
        InvalidDataset: it is neither CSV nor JSONL, not UTF-8, lacks a column, or is too long or has a line that is.
    """
    has_split: bool | None = None
    has_label, has_other = False, columns.label != DEFAULT_LABEL
    first: Mapping[str, Any] = {}
    try:
        if (size_bytes := path.stat().st_size) > FILE_MAX_BYTES:
            raise InvalidDataset(f"{path} has {size_bytes:,} bytes, a manifest may have at most {FILE_MAX_BYTES:,}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, given in _records(path, file, columns):
                if has_split is None:
                    first = given
                    if columns.path not in given:
                        raise _lacking(path, given, columns.path)
                    has_split = columns.split in given
                has_label = has_label or columns.label in given
                has_other = has_other or bool(given.keys() - {columns.path, columns.split, None})
                row = _row(line, given, columns, faults, folder=folder, has_split=has_split)
                if row is not None:
                    yield row
        # Labels may stand in a column of another name: with one, nothing is taken to be unlabelled in silence.
        if first and not has_label and has_other:
            raise _lacking(path, first, columns.label)
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise InvalidDataset(f"{path} cannot be read as CSV: {error}") from error
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror}") from error


def _lacking(path: Path, first: Mapping[str, Any], name: str) -> InvalidDataset:
    return InvalidDataset(
        f"{path} lacks the column {name!r}; it has {listed(repr(name) for name in first)}: give path_column and "
        "label_column. A row without a label has an empty one; a file that lists paths alone has no labels"
    )


def _records(path: Path, file: TextIO, columns: Columns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        yield from _json_records(path, file)
    elif suffix in CSV_SUFFIXES:
        lines = _lines(path, file)
        head = next(lines, "")
        delimiter = CSV_SUFFIXES[suffix]
        if delimiter not in head and _OTHER_DELIMITER in head:
            delimiter = _OTHER_DELIMITER
        reader = csv.DictReader(itertools.chain([head], lines), delimiter=delimiter, skipinitialspace=True)
        for record in reader:
            yield reader.line_num, record
    else:
        known = ", ".join((*CSV_SUFFIXES, *JSONL_SUFFIXES))
        raise InvalidDataset(
            f"{path} is no manifest by its name; it has to end with one of {known}: save the list as CSV with a header "
            "(path,label), or as JSON with an object in each line (DataFrame.to_json(orient='records', lines=True))"
        )


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


def _row(
    line: int, record: Mapping[str, Any], columns: Columns, faults: Faults, *, folder: Path, has_split: bool
) -> Row | None:
    """Row of a record; ``has_split`` is whether the first one has a split: all have one, or none."""
    path, label = record.get(columns.path), record.get(columns.label)
    name = relative_path(path, folder)
    if name is None:
        faults.add(f"paths are not allowed (those below {folder}, without '..', are)", line, path)
        return None
    if isinstance(label, bool) or not (label is None or isinstance(label, int | str) or _is_whole(label)):
        faults.add("labels are neither a name nor an integer from 0 (null or an empty text is none)", line, label)
        return None
    given = record.get(columns.split) if has_split else None if columns.split in record else "train"
    split = _SPLIT_OF.get(given.strip().lower()) if isinstance(given, str) else None
    if split is None:
        known = ", ".join(_SPLIT_OF)
        faults.add(f"rows are of an unknown split (known are {known}, in any case)", line, given)
        return None
    return Row(line, name, _label(label), split)


def _is_whole(given: object) -> bool:
    """Whether it is an integer as a column of floats has it, or NaN: what pandas makes of labels with gaps."""
    return isinstance(given, float) and (given.is_integer() or math.isnan(given))


def _label(given: str | float | None) -> str | None:
    """Label as text; None for none."""
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return None
    return label_text(given if isinstance(given, str) else str(int(given)))
