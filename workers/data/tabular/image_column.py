"""Column of encoded pictures of the tables of a split, read in bounded memory.

A row group may have gigabytes of pictures: it is read in pieces of a few megabytes, one after the other, and some of
the last are held, since several threads decode pictures that lie near each other. A row before those begins its group
anew.

Legend: N rows of a split.
"""

import os
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from workers.data.decoding.blocks import BLOCK_BYTES
from workers.data.tabular.tables import Table
from workers.errors import InvalidDataset
from workers.texts import shortened

if TYPE_CHECKING:
    import pyarrow as pa

# Of a piece of a group, by the mean of its rows, and its rows, for where pictures are of very different sizes.
_PIECE_BYTES, _PIECE_ROWS = 4 << 20, 256
# Pieces that are held, all together: what threads may be apart, see ``picture_blocks``, and at least so much.
_HELD_BYTES = max(64 << 20, 2 * len(os.sched_getaffinity(0)) * BLOCK_BYTES)
# Groups that are read at the same time: threads are at the end of one and in the next.
_CURSORS = 4


@dataclass
class _Cursor:
    """Reading of a group; ``row`` of the split is the next one."""

    pieces: "Generator[pa.Array, None, None]"
    row: int


class ImageColumn:
    """Column of encoded pictures of the tables of a split, read by row; several threads may.

    Args:
        tables: one after the other.
        column: its name.
        name: of a file in sample ids.
        files: of the pictures of those groups that hold paths alone, in the order of the rows.
    """

    def __init__(
        self, tables: Sequence[Table], column: str, name: "Callable[[Path], str]", files: Sequence[Path] = ()
    ) -> None:
        self._groups = [(table, number) for table in tables for number in range(len(table.group_rows))]
        self._starts = [0, *accumulate(table.group_rows[number] for table, number in self._groups)]
        # Of each group, the first row of its table.
        self._firsts = [
            start for table, start in zip(tables, _starts_of(tables), strict=True) for _ in table.group_rows
        ]
        self._column = column
        self._name = name
        self._bytes = [size for table in tables for size in table.group_bytes(column)]
        self._files = self._files_of_groups(tables, files)
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        # By the first row of each, and those rows ascending.
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._held_starts: list[int] = []
        self._held_bytes = 0
        self._lock = Lock()

    @property
    def mean_bytes(self) -> int:
        """Bytes of a picture that a table holds, rounded; 0 where all are files, or are mapped."""
        return sum(self._bytes) // max(1, self._starts[-1])

    def ids(self) -> list[str]:
        """Sample id of each row: ``FILE:ROW``, rows counted from 0, or the file that a row names."""
        found = []
        for group, (table, _) in enumerate(self._groups):
            files = self._files.get(group)
            if files is not None:
                found += [self._name(file) for file in files]
                continue
            first, name = self._starts[group] - self._firsts[group], self._name(table.path)
            found += [f"{name}:{row}" for row in range(first, first + self._starts[group + 1] - self._starts[group])]
        return found

    def place(self, row: int) -> str:
        """Name of a row in messages."""
        group = self._group(row)
        if group in self._files:
            return str(self._files[group][row - self._starts[group]])
        return f"{self._groups[group][0].path}, row {row - self._firsts[group]},"

    def read(self, row: int) -> bytes:
        """Encoded picture of a row.

        Raises:
            InvalidDataset: there is none, or it is too large.
            OSError: a file cannot be read.
        """
        from workers.data.decoding.pictures import FILE_MAX_BYTES, read_file

        group = self._group(row)
        if group in self._files:
            return read_file(self._files[group][row - self._starts[group]])
        value = self._value(row, group)
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            path = value.get("path") if isinstance(value, dict) else None
            found = f"has no bytes, but the path {shortened(repr(path), 120)}" if path else "has no picture"
            raise InvalidDataset(
                f"{self.place(row)} {found}: save the table with its pictures inside, or with paths alone"
            )
        if len(content) > FILE_MAX_BYTES:
            raise InvalidDataset(
                f"{self.place(row)} has {len(content)} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it "
                "smaller"
            )
        return bytes(content)

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _files_of_groups(self, tables: Sequence[Table], files: Sequence[Path]) -> dict[int, Sequence[Path]]:
        """Files of the groups that hold paths alone, by group."""
        alone = [is_alone for table in tables for is_alone in table.without_bytes(self._column)]
        found, start = dict[int, Sequence[Path]](), 0
        for group, (table, number) in enumerate(self._groups):
            if alone[group]:
                rows = table.group_rows[number]
                found[group] = files[start : start + rows]
                start += rows
        if start != len(files):
            raise InvalidDataset(f"{tables[0].path} was changed while it was read: post the job again")
        return found

    def _value(self, row: int, group: int) -> Any:  # noqa: ANN401 - a struct, or bytes
        """Value of a row that is in a table."""
        with self._lock:
            start = self._held_start(row)
            start = self._read_on(row, group) if start is None else start
            self._held.move_to_end(start)
            piece = self._held[start]
        return piece[row - start].as_py()

    def _held_start(self, row: int) -> int | None:
        """First row of the held piece that has a row; None if none has."""
        place = bisect_right(self._held_starts, row) - 1
        if place < 0:
            return None
        start = self._held_starts[place]
        return start if row < start + len(self._held[start]) else None

    def _read_on(self, row: int, group: int) -> int:
        """Read a group up to the piece with a row, and hold what was read; returns that piece's first row."""
        table, number = self._groups[group]
        cursor = self._cursors.pop(group, None)
        if cursor is None or cursor.row > row:
            mean_bytes = self._bytes[group] // max(1, table.group_rows[number])
            rows = min(_PIECE_ROWS, max(1, _PIECE_BYTES // max(1, mean_bytes)))
            cursor = _Cursor(table.pictures(number, self._column, rows), self._starts[group])
        self._cursors[group] = cursor
        while len(self._cursors) > _CURSORS:
            self._cursors.popitem(last=False)[1].pieces.close()
        for piece in cursor.pieces:
            start = cursor.row
            cursor.row += len(piece)
            if len(piece):
                self._hold(start, piece)
            if row < cursor.row:
                return start
        raise InvalidDataset(
            f"{table.path} cannot be read as its footer says: row group {number} has no row {row - self._starts[group]}"
        )

    def _hold(self, start: int, piece: "pa.Array") -> None:
        if start in self._held:
            self._drop(start)
        self._held[start] = piece
        self._held_bytes += piece.nbytes
        insort(self._held_starts, start)
        while len(self._held) > 1 and self._held_bytes > _HELD_BYTES:
            self._drop(next(iter(self._held)))

    def _drop(self, start: int) -> None:
        self._held_bytes -= self._held.pop(start).nbytes
        del self._held_starts[bisect_right(self._held_starts, start) - 1]


def _starts_of(tables: Sequence[Table]) -> list[int]:
    return [0, *accumulate(table.rows for table in tables)][:-1]
