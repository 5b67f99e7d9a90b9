"""Columns of a teacher's output for the classes of a dataset, matched by name. Light: the API loads this.

A name fits in one of four ways, the first that finds any counts:

1. the same text;
2. the same but for case, spaces, hyphens and underscores;
3. the same WordNet id at its beginning (``n01440764``);
4. one of several synonyms between commas, behind such an id or without ("n01440764 tench, Tinca tinca").

Each class of the dataset needs one column, and a column has one class; the teacher may have more. Names that nobody has
stated, of the file's metadata, count only if they tell the column of every class. Else they are left aside where the
numbers of classes agree, for the order may still be right: the preflight looks.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from workers.config.teacher import TeacherReading
from workers.errors import ContractViolation, InvalidTeacher
from workers.teacher.wording import TEACHER, Wording
from workers.texts import shortened

MatchedBy = Literal["position", "name"]
_SHOWN = 8
_WORDNET_ID = re.compile(r"n\d{8}(?![0-9A-Za-z])")


class ClassColumns(NamedTuple):
    """Columns of an output for a dataset's classes.

    Attributes:
        columns: one for each class, in the dataset's order; None is all of the output in its own order.
        matched_by: whether names have told, or the classes are taken in their order.
        names: of the teacher's columns, as far as they are known.
        note: a sentence about the match for a person; empty where there is nothing to say.
    """

    columns: tuple[int, ...] | None
    matched_by: MatchedBy
    names: tuple[str, ...] | None = None
    note: str = ""


def match_classes(
    reading: TeacherReading,
    file_names: Sequence[str] | None,
    dataset_names: Sequence[str],
    outputs: int | None,
    *,
    wording: Wording = TEACHER,
) -> ClassColumns:
    """Match the classes of a dataset with the columns of an output.

    Args:
        reading: with ``class_names`` and ``class_map`` of the client.
        file_names: class names in the file's metadata.
        dataset_names: in label order; empty where nothing names the dataset's classes.
        outputs: columns of the output; None where the graph leaves them open.
        wording: of the messages.

    Raises:
        InvalidTeacher: ``class_names`` has another number of names than the output has columns.
        ContractViolation: the dataset has classes that the teacher lacks, a name fits several columns, or the numbers
            of classes differ and nothing tells which is which.
    """
    check_names(reading, outputs, wording)
    names = reading.class_names
    if not dataset_names:  # of classes that nothing names, the teacher tells the number
        return ClassColumns(None, "position", names)
    if names is None and file_names is not None and outputs in (None, len(file_names)):
        names = tuple(file_names)
    if names is None and not reading.class_map:
        return _in_order(dataset_names, outputs, wording)
    matches = _matches(names or (), reading.class_map, dataset_names, outputs, wording=wording)
    is_stated = reading.class_names is not None or bool(reading.class_map)
    try:
        columns = _one_each(matches, names, dataset_names, wording)
    except ContractViolation:
        if is_stated or (any(matches) and outputs not in (None, len(dataset_names))):
            raise
        which = "do not tell the column of each of" if any(matches) else "are none of"
        note = (
            f"the class names in {wording.who}'s file ({_listed(names or ())}) {which} the dataset's "
            f"({_listed(dataset_names)}): the classes are taken in their order"
        )
        return _in_order(dataset_names, outputs, wording)._replace(note=note)
    in_order = columns == tuple(range(outputs or len(names or columns)))
    return ClassColumns(
        None if in_order else columns,
        "name",
        names,
        _note(columns, names, dataset_names, outputs, in_order=in_order, wording=wording),
    )


def check_names(reading: TeacherReading, outputs: int | None, wording: Wording = TEACHER) -> None:
    """Refuse names that are not one for each column of an output.

    Raises:
        InvalidTeacher: saying both numbers.
    """
    names = reading.class_names
    if names is not None and outputs not in (None, len(names)):
        raise InvalidTeacher(
            f"class_names has {len(names)} names, {wording.who}'s output has {outputs} columns: give one name for each "
            "column, in their order"
        )


def _in_order(dataset_names: Sequence[str], outputs: int | None, wording: Wording) -> ClassColumns:
    if outputs not in (None, len(dataset_names)):
        raise ContractViolation(
            f"{wording.who} has {outputs} classes, the dataset has {len(dataset_names)}: they do not belong together. "
            f"Where the dataset's classes are some of {wording.who}'s, give {wording.who} its `class_names`, one for "
            "each column, and they are matched by name"
        )
    return ClassColumns(None, "position")


def _matches(
    names: Sequence[str],
    class_map: Mapping[str, str | int],
    dataset_names: Sequence[str],
    outputs: int | None,
    *,
    wording: Wording,
) -> list[frozenset[int]]:
    """Columns that fit each class of the dataset."""
    find = _finder(names)
    found = []
    for name in dataset_names:
        wanted = class_map.get(name, name)
        if isinstance(wanted, int):
            count = outputs if outputs is not None else len(names) or None
            if count is not None and wanted >= count:
                raise ContractViolation(
                    f"class_map gives {name!r} column {wanted}, {wording.who}'s output has columns 0 to {count - 1}"
                )
            found.append(frozenset({wanted}))
        else:
            found.append(find(wanted))
    return found


def _one_each(
    matches: Sequence[frozenset[int]], names: Sequence[str] | None, dataset_names: Sequence[str], wording: Wording
) -> tuple[int, ...]:
    """The one column of each class. Raises ContractViolation."""
    missing = [name for name, columns in zip(dataset_names, matches, strict=True) if not columns]
    if missing:
        raise ContractViolation(
            f"the dataset has {len(missing)} classes that {wording.who} lacks: {_listed(missing)}. "
            f"{wording.who.capitalize()}'s are {_listed(names or ())}. Where one has another name there, say so in "
            f"{wording.its}`class_map`: "
            f'{{"{shortened(missing[0], 40)}": "its name there"}}, or the number of its column; else leave the class '
            "out of the dataset"
        )
    for name, columns in zip(dataset_names, matches, strict=True):
        if len(columns) > 1:
            several = ", ".join(f"{k} ({_name(names, k)!r})" for k in sorted(columns)[:_SHOWN])
            raise ContractViolation(
                f"the class {shortened(name)!r} fits several columns of {wording.who}: {several}. Say which in "
                f'{wording.its}`class_map`: {{"{shortened(name, 40)}": {min(columns)}}}'
            )
    order = [min(columns) for columns in matches]
    owners: dict[int, str] = {}
    for name, column in zip(dataset_names, order, strict=True):
        if column in owners:
            raise ContractViolation(
                f"column {column} ({_name(names, column)!r}) of {wording.who} fits two classes of the dataset, "
                f"{shortened(owners[column])!r} and {shortened(name)!r}: say which column is which in its `class_map`"
            )
        owners[column] = name
    return tuple(order)


def _note(
    columns: tuple[int, ...],
    names: Sequence[str] | None,
    dataset_names: Sequence[str],
    outputs: int | None,
    *,
    in_order: bool,
    wording: Wording,
) -> str:
    if in_order:
        return ""
    shown = ", ".join(
        f"{shortened(name, 40)!r} is column {column}" + (f" ({_name(names, column)!r})" if names else "")
        for name, column in list(zip(dataset_names, columns, strict=True))[:_SHOWN]
    )
    more = ", ..." if len(columns) > _SHOWN else ""
    total = outputs or len(names or ()) or max(columns) + 1
    what = "in another order" if total == len(columns) else f"{len(columns)} of {wording.who}'s {total}"
    return f"the dataset's classes are matched by name, {what}: {shown}{more}"


def _finder(names: Sequence[str]) -> Callable[[str], frozenset[int]]:
    """A function that finds the columns whose name fits: those of the first way that finds any."""
    ways: tuple[Callable[[str], Iterator[str]], ...] = (_same, _alike, _wordnet_id, _synonyms)
    indexes = []
    for way in ways:
        index: dict[str, set[int]] = defaultdict(set)
        for column, name in enumerate(names):
            for key in way(name):
                index[key].add(column)
        indexes.append(index)

    def find(name: str) -> frozenset[int]:
        for way, index in zip(ways, indexes, strict=True):
            found = frozenset(column for key in way(name) for column in index.get(key, ()))
            if found:
                return found
        return frozenset()

    return find


def _same(name: str) -> Iterator[str]:
    yield name


def _alike(name: str) -> Iterator[str]:
    key = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
    if key:
        yield key


def _wordnet_id(name: str) -> Iterator[str]:
    id = _WORDNET_ID.match(name)
    if id is not None:
        yield id[0]


def _synonyms(name: str) -> Iterator[str]:
    for part in _WORDNET_ID.sub("", name, count=1).split(","):
        yield from _alike(part)


def _name(names: Sequence[str] | None, column: int) -> str:
    return shortened(names[column], 40) if names and column < len(names) else "?"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(shortened(name, 40)) for name in names[:_SHOWN])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > _SHOWN else shown or "not named"
