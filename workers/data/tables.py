"""Tables with a column of encoded pictures and one of labels: parquet files, and Arrow files of ``datasets``.

The one place that imports pyarrow, which is the extra ``datasets`` and takes 0.2 s: inside functions, so that a process
that reads no table does not load it. Of a table, the schema and the numbers of rows come from its metadata; labels are
read in pieces, pictures a group of rows at a time. An Arrow file is mapped.

Legend: N rows.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.errors import InvalidDataset, first_line
from workers.texts import shortened

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of a piece of labels.
_PIECE_ROWS = 1 << 16
# Of the pictures of a group of rows: a group is read whole, and several are held.
GROUP_MAX_BYTES = 1 << 30
# A footer is as long as its file says.
_FOOTER_MAX_BYTES = 256 << 20


def check_installed() -> None:
    """Raise InvalidDataset, which names the extra, unless pyarrow is there."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InvalidDataset(
            f"parquet and Arrow files need the package {error.name}, which is not installed where this runs: "
            "pip install 'retort[datasets]' there"
        ) from error


@dataclass(frozen=True, eq=False)
class Table(ABC):
    """File with a table.

    Attributes:
        path: of the file.
        schema: of all columns.
        group_rows: rows of each group.
    """

    path: Path
    schema: "pa.Schema"
    group_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        """N, of all groups."""
        return sum(self.group_rows)

    @abstractmethod
    def pieces(self, column: str) -> Iterator["pa.Array"]:
        """Values of a column of small values, in pieces.

        Raises:
            InvalidDataset: damaged.
        """

    @abstractmethod
    def group(self, number: int, column: str) -> "pa.Array":
        """Values of a column in one group of rows.

        Raises:
            InvalidDataset: damaged.
        """


@dataclass(frozen=True, eq=False)
class _ParquetTable(Table):
    @contextlib.contextmanager
    def _open(self) -> "Iterator[Any]":
        with _damages_named(self.path, "parquet"):
            import pyarrow.parquet as pq

            # Buffered, a column of a group is not read ahead whole.
            with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                yield file

    def pieces(self, column: str) -> Iterator["pa.Array"]:
        with self._open() as file:
            for batch in file.iter_batches(_PIECE_ROWS, columns=[column], use_threads=False):
                yield batch.column(0)

    def group(self, number: int, column: str) -> "pa.Array":
        with self._open() as file:
            found = file.read_row_group(number, columns=[column], use_threads=False).column(0)
            return found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)


@dataclass(frozen=True, eq=False)
class _ArrowTable(Table):
    def pieces(self, column: str) -> Iterator["pa.Array"]:
        with _damages_named(self.path, "Arrow"):
            for chunk in self._chunks(column):
                chunk.validate(full=True)
                for start in range(0, len(chunk), _PIECE_ROWS):
                    yield chunk.slice(start, _PIECE_ROWS)

    def group(self, number: int, column: str) -> "pa.Array":
        with _damages_named(self.path, "Arrow"):
            chunk = self._chunks(column)[number]
            # Offsets that lead out of the file would be followed.
            chunk.validate(full=True)
            return chunk

    def _chunks(self, column: str) -> "list[pa.Array]":
        batches = _arrow_batches(self.path, [self.schema.get_field_index(column)])
        return [batch.column(0) for batch in batches]


def open_parquet(path: Path) -> Table:
    """Open a parquet file; its footer alone is read.

    Raises:
        InvalidDataset: damaged.
    """
    import pyarrow.parquet as pq

    with _damages_named(path, "parquet"):
        limits = {"thrift_string_size_limit": _FOOTER_MAX_BYTES, "thrift_container_size_limit": 10_000_000}
        with pq.ParquetFile(path, **limits) as file:
            described = file.metadata
            rows = tuple(described.row_group(number).num_rows for number in range(described.num_row_groups))
            return _ParquetTable(path, file.schema_arrow, rows)


def open_arrow(path: Path) -> Table:
    """Open an Arrow file, of the stream format as ``datasets`` writes it or of the other; no values are read.

    Raises:
        InvalidDataset: damaged.
    """
    import pyarrow as pa

    with _damages_named(path, "Arrow"):
        schema = _arrow_reader(path, None).schema
        # A column of numbers, if there is one: a file that is packed would be unpacked.
        cheapest = next((place for place, field in enumerate(schema) if pa.types.is_integer(field.type)), 0)
        return _ArrowTable(path, schema, tuple(batch.num_rows for batch in _arrow_batches(path, [cheapest])))


def largest_group(table: Table, column: str) -> int:
    """Bytes, unpacked, of the largest group of rows of a column, as a parquet file says; 0 for one that is mapped."""
    if not isinstance(table, _ParquetTable):
        return 0
    with table._open() as file:
        described, largest = file.metadata, 0
        for number in range(described.num_row_groups):
            group = described.row_group(number)
            leaves = (group.column(place) for place in range(group.num_columns))
            of_column = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
            largest = max(largest, sum(leaf.total_uncompressed_size for leaf in of_column))
        return largest


def _arrow_batches(path: Path, columns: Sequence[int]) -> "list[pa.RecordBatch]":
    """Batches with some of the columns, by number."""
    reader = _arrow_reader(path, list(columns))
    if hasattr(reader, "num_record_batches"):
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return list(reader)


def _arrow_reader(path: Path, columns: "list[int] | None") -> Any:  # noqa: ANN401 - of either format
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    is_file = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped, options=options)


@contextlib.contextmanager
def _damages_named(path: Path, form: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.lib.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, InvalidDataset):
            raise
        what = shortened(first_line(error))
        raise InvalidDataset(
            f"{path} cannot be read as a {form} file ({what}): it is damaged, or no such file"
        ) from error
