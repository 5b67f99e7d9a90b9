"""Values of the columns of tables that hold pictures and labels, see ``table_features``.

Legend: N rows of a split.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workers.data.class_names import NAME_MAX_CHARACTERS
from workers.data.label_values import (
    Classes,
    NamedClasses,
    check_number,
    classes_of,
    classes_of_names,
    distinct,
    trained_names,
    trained_values,
    zero_based_note,
)
from workers.data.labels import LABELS_MAX, Labels, check_labels, check_pieces
from workers.data.tables import GROUP_MAX_BYTES, Table, largest_group
from workers.errors import InvalidDataset
from workers.texts import shortened
from workers.unlabelled import NO_LABEL, count_classes

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from workers.events import Split

# Groups of rows that are held, all together.
_HELD_BYTES = 512 << 20
# Labels of a group of rows: as many integers as labels are read.
_LABELS_MAX_BYTES = 8 * LABELS_MAX
# In UTF-8.
_TEXT_MAX_BYTES = 4 * NAME_MAX_CHARACTERS


@dataclass(frozen=True)
class LabelColumn:
    """Column of labels of every split that has it.

    Attributes:
        tables: of each such split.
        column: its name.
        names: of the classes, where the client or the table gives them.
        path: of the dataset.
        notes: sentences about columns that are not taken for labels.
    """

    tables: "Mapping[Split, Sequence[Table]]"
    column: str
    names: tuple[str, ...] | None
    path: "Path"
    notes: tuple[str, ...] = ()

    def classes(self) -> Classes | NamedClasses:
        """Classes of the training split, or of all splits where not all training rows have a label.

        Raises:
            InvalidDataset: damaged, or too many classes.
        """
        for of_split in self.tables.values():
            check_groups(of_split, self.column, labels=True)
        if self.tables and self._is_text():
            texts: dict[Split, set[str | None]] = {}
            for split in self.tables:
                found = texts.setdefault(split, set())
                for piece in self._values(split):
                    found.update(piece.tolist())
                    check_number(len(found), self.path)
            return classes_of_names(trained_names(texts), self.names, self.path)
        values = {split: distinct(self._values(split), self.path)[0] for split in self.tables}
        trained = trained_values(values, self.names, self.path)
        if self.names is None:
            check_labels(trained[trained < 0], int((trained >= 0).sum()), self._place("train"))
        classes = classes_of(trained, self.names)
        is_zero_based = self.names is None and classes.are_numbered
        return replace(classes, said=zero_based_note(values.values())) if is_zero_based else classes

    def check(self, classes: Classes | NamedClasses) -> "dict[Split, tuple[int, ...]]":
        """Check the labels of every split; returns how many there are of each class, by split.

        Raises:
            InvalidDataset: labels of no class, or a class without a training picture where all have a label.
        """
        counts = {split: np.zeros(len(classes.names), np.int64) for split in self.tables}

        def counted(split: "Split") -> Iterator[Labels]:
            for piece in self.pieces(split, classes):
                yield piece
                counts[split] += count_classes(piece, len(classes.names))

        places = {split: self._place(split) for split in self.tables}
        check_pieces(counted, classes.names, places, self.path)
        return {split: tuple(found.tolist()) for split, found in counts.items()}

    def pieces(self, split: "Split", classes: Classes | NamedClasses) -> Iterator[Labels]:
        """Classes 0..C-1 of the rows of a split, or -1, in pieces; none of a split without the column."""
        return (classes.number(piece, self._place(split)) for piece in self._values(split))

    def _place(self, split: "Split") -> str:
        return f"{self.path}: column {self.column!r} of {split}"

    @property
    def _first(self) -> Table:
        return next(iter(self.tables.values()))[0]

    def _is_text(self) -> bool:
        import pyarrow as pa

        found = self._first.schema.field(self.column).type
        kind = found.value_type if pa.types.is_dictionary(found) else found
        return not (pa.types.is_integer(kind) or pa.types.is_boolean(kind))

    def _values(self, split: "Split") -> Iterator[NDArray[Any]]:
        """Labels of a split as they are in the files: int64, or texts; -1 or None of rows without one."""
        import pyarrow as pa

        if split not in self.tables:
            return
        wanted = pa.string() if self._is_text() else pa.int64()
        for table in self.tables[split]:
            for piece in table.pieces(self.column):
                _check_lengths(piece, f"{table.path}: column {self.column!r}")
                try:
                    plain = piece.dictionary_decode() if pa.types.is_dictionary(piece.type) else piece
                    values = plain.cast(wanted)
                except pa.lib.ArrowException as error:
                    raise InvalidDataset(
                        f"{table.path}: the column {self.column!r} of type {piece.type} cannot be read as {wanted}, as "
                        f"that of {self._first.path} is: {shortened(error)}"
                    ) from error
                yield (values if wanted == pa.string() else values.fill_null(NO_LABEL)).to_numpy(zero_copy_only=False)


class ImageColumn:
    """Column of encoded pictures of the tables of a split, read by row; several threads may.

    Args:
        tables: one after the other.
        column: its name.
        name: of a table's file in sample ids.
    """

    def __init__(self, tables: Sequence[Table], column: str, name: "Callable[[Path], str]") -> None:
        self._groups = [(table, number) for table in tables for number in range(len(table.group_rows))]
        sizes = (table.group_rows[number] for table, number in self._groups)
        self._starts = [0, *accumulate(sizes)]
        first_of = {id(table): start for table, start in zip(tables, _starts_of(tables), strict=True)}
        self._firsts = [first_of[id(table)] for table, _ in self._groups]
        self._column = column
        self._name = name
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = Lock()

    def ids(self) -> list[str]:
        """Sample id of each row: ``FILE:ROW``, rows counted from 0."""
        named = ((self._name(table.path), table.rows) for table in dict.fromkeys(table for table, _ in self._groups))
        return [f"{name}:{row}" for name, rows in named for row in range(rows)]

    def place(self, row: int) -> str:
        """Name of a row in messages."""
        group = bisect_right(self._starts, row) - 1
        return f"{self._groups[group][0].path}, row {row - self._firsts[group]},"

    def read(self, row: int) -> bytes:
        """Encoded picture of a row.

        Raises:
            InvalidDataset: there is none, or it is too large.
        """
        from workers.data.pictures import FILE_MAX_BYTES

        group = bisect_right(self._starts, row) - 1
        value = self._group(group)[row - self._starts[group]].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            path = value.get("path") if isinstance(value, dict) else None
            found = f"has no bytes, but the path {shortened(repr(path), 120)}" if path else "has no picture"
            raise InvalidDataset(
                f"{self.place(row)} {found}: save the table with its pictures inside, or register the files as a folder"
            )
        if len(content) > FILE_MAX_BYTES:
            raise InvalidDataset(
                f"{self.place(row)} has {len(content)} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it "
                "smaller"
            )
        return bytes(content)

    def _group(self, group: int) -> "pa.Array":
        with self._lock:
            if group not in self._held:
                table, number = self._groups[group]
                self._held[group] = table.group(number, self._column)
                while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group]


def check_rows(tables: Sequence[Table], split: str, path: "Path") -> None:
    """Raise InvalidDataset where a split has no rows, or more than labels are read of."""
    rows = sum(table.rows for table in tables)
    if not 0 < rows <= LABELS_MAX:
        raise InvalidDataset(
            f"{path}: the {split} split has {rows} rows; 1 to {LABELS_MAX} are read: split the dataset"
        )


def check_groups(tables: Iterable[Table], column: str, *, labels: bool = False) -> None:
    """Raise InvalidDataset where a group of rows of a column, of pictures or of labels, is too large to be read."""
    most = _LABELS_MAX_BYTES if labels else GROUP_MAX_BYTES
    for table in tables:
        if (found := largest_group(table, column)) > most:
            raise InvalidDataset(
                f"{table.path}: a row group has {found} bytes of {'labels' if labels else 'pictures'}, at most {most} "
                "are read: write it with smaller ones, row_group_size=1000 say"
            )


def _check_lengths(piece: "pa.Array", where: str) -> None:
    """Raise InvalidDataset where a text is too long for a label, before a dictionary repeats it for every row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = piece.dictionary if pa.types.is_dictionary(piece.type) else piece
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        longest = pc.max(pc.binary_length(texts)).as_py() or 0
        if longest > _TEXT_MAX_BYTES:
            raise InvalidDataset(
                f"{where} holds a label of {longest} bytes, a class name may have at most {NAME_MAX_CHARACTERS} "
                "characters: shorten it, or set 'label' to another column"
            )


def _starts_of(tables: Sequence[Table]) -> list[int]:
    return [0, *accumulate(table.rows for table in tables)][:-1]
