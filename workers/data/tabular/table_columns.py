"""Values of the columns of tables that hold labels, see ``table_features``.

Legend: N rows of a split.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workers.data.labelling.class_names import NAME_MAX_CHARACTERS
from workers.data.labelling.label_values import (
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
from workers.data.labelling.labels import LABELS_MAX, Labels, check_labels, check_pieces
from workers.data.tabular.tables import Table
from workers.errors import InvalidDataset
from workers.texts import shortened
from workers.unlabelled import NO_LABEL, count_classes

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from workers.events import Split

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
            _check_groups(of_split, self.column)
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


def check_rows(tables: Sequence[Table], split: str, path: "Path") -> None:
    """Raise InvalidDataset where a split has no rows, or more than labels are read of."""
    rows = sum(table.rows for table in tables)
    if not 0 < rows <= LABELS_MAX:
        raise InvalidDataset(
            f"{path}: the {split} split has {rows} rows; 1 to {LABELS_MAX} are read: split the dataset"
        )


def _check_groups(tables: Iterable[Table], column: str) -> None:
    """Raise InvalidDataset where a group of rows of a column of labels is too large to be read."""
    for table in tables:
        if (found := max(table.group_bytes(column), default=0)) > _LABELS_MAX_BYTES:
            raise InvalidDataset(
                f"{table.path}: a row group has {found} bytes of labels, at most {_LABELS_MAX_BYTES} are read: write "
                "it with smaller ones, row_group_size=1000 say"
            )


def longest_text(piece: "pa.Array") -> int:
    """Bytes of the longest text of a column, before a dictionary repeats it for every row; 0 where it has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = piece.dictionary if pa.types.is_dictionary(piece.type) else piece
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(is_kind(texts.type) for is_kind in kinds):
        return 0
    return pc.max(pc.binary_length(texts)).as_py() or 0


def _check_lengths(piece: "pa.Array", where: str) -> None:
    """Raise InvalidDataset where a text is too long for a label."""
    if (longest := longest_text(piece)) > _TEXT_MAX_BYTES:
        raise InvalidDataset(
            f"{where} holds a label of {longest} bytes, a class name may have at most {NAME_MAX_CHARACTERS} "
            "characters: shorten it, or set 'label' to another column"
        )
