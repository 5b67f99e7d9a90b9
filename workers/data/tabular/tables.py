"""Tables with a column of encoded pictures and one of labels: parquet files, and Arrow files of ``datasets``.

pyarrow, which is the extra ``datasets`` and takes 0.2 s, is imported inside functions, so that a process that reads no
table does not load it. Of a table, the schema and the numbers of rows come from its metadata; labels,
paths and pictures are read in pieces. An Arrow file is mapped.

Legend: N rows.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.data.tabular.arrow_messages import is_packed
from workers.errors import InvalidDataset, first_line
from workers.texts import shortened

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of a piece of labels, and of one of texts, which are larger.
_PIECE_ROWS, _TEXT_PIECE_ROWS = 1 << 16, 1 << 13
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
        """Values of a column of small values, in pieces; texts may come as a dictionary's where the schema has none.

        Raises:
            InvalidDataset: damaged.
        """

    def _piece_rows(self, column: str) -> int:
        import pyarrow as pa

        kind = self.schema.field(column).type
        return _PIECE_ROWS if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else _TEXT_PIECE_ROWS

    @abstractmethod
    def pictures(self, number: int, column: str, rows: int) -> "Generator[pa.Array, None, None]":
        """Values of a column in one group of rows, in pieces of so many rows at most; one that is mapped comes whole.

        Raises:
            InvalidDataset: damaged.
        """

    @abstractmethod
    def paths(self, number: int, column: str) -> "Iterator[pa.Array]":
        """Paths of a column of pictures in one group of rows, as texts, in pieces; maybe as a dictionary's.

        Raises:
            InvalidDataset: damaged.
        """

    @abstractmethod
    def group_bytes(self, column: str) -> Sequence[int]:
        """Bytes, unpacked, of a column in each group of rows, as the file says; 0 where it is mapped."""

    @abstractmethod
    def _null_counts(self, column: str) -> Sequence[int]:
        """Rows of each group in which the ``bytes`` of a column of structs are null, as far as the file says."""

    def without_bytes(self, column: str) -> Sequence[bool]:
        """Whether a column of pictures holds paths alone in each group of rows."""
        kind = self.schema.field(column).type
        if holds_paths(kind):
            return [True] * len(self.group_rows)
        if not holds_struct_bytes(kind) or kind.get_field_index("path") < 0:
            return [False] * len(self.group_rows)
        counts = zip(self._null_counts(column), self.group_rows, strict=True)
        return [bool(rows) and nulls == rows for nulls, rows in counts]


@dataclass(frozen=True, eq=False)
class _ParquetTable(Table):
    @contextlib.contextmanager
    def _open(self, dictionary: Sequence[str] = ()) -> "Iterator[Any]":
        with _damages_named(self.path, "parquet"):
            import pyarrow.parquet as pq

            # Buffered, a column of a group is not read ahead whole.
            options = {"buffer_size": 1 << 20, "pre_buffer": False, "read_dictionary": list(dictionary)}
            with pq.ParquetFile(self.path, **options) as file:
                yield file

    def pieces(self, column: str) -> Iterator["pa.Array"]:
        # A long text that a file holds once may stand in every row: it is not repeated here.
        with self._open(dictionary=[column]) as file:
            for batch in file.iter_batches(self._piece_rows(column), columns=[column], use_threads=False):
                yield batch.column(0)

    def pictures(self, number: int, column: str, rows: int) -> "Generator[pa.Array, None, None]":
        with self._open() as file:
            for batch in file.iter_batches(rows, row_groups=[number], columns=[column], use_threads=False):
                yield batch.column(0)

    def paths(self, number: int, column: str) -> "Iterator[pa.Array]":
        is_struct = self.schema.field(column).type.num_fields > 0
        leaf = f"{column}.path" if is_struct else column
        with self._open(dictionary=[leaf]) as file:
            for batch in file.iter_batches(_TEXT_PIECE_ROWS, row_groups=[number], columns=[leaf], use_threads=False):
                found = batch.column(0)
                yield found.field("path") if is_struct else found

    def group_bytes(self, column: str) -> Sequence[int]:
        return [sum(leaf.total_uncompressed_size for leaf in leaves) for leaves in self._leaves(f"{column}.")]

    def _null_counts(self, column: str) -> Sequence[int]:
        found = []
        for leaves in self._leaves(f"{column}.bytes."):
            stated = [leaf.statistics for leaf in leaves]
            is_known = all(each is not None and each.has_null_count for each in stated)
            found.append(sum(each.null_count for each in stated) if is_known else 0)
        return found

    def _leaves(self, path: str) -> "list[list[Any]]":
        """Descriptions of the columns of each group whose path begins so, a dot at its end."""
        with self._open() as file:
            described = file.metadata
            groups = (described.row_group(number) for number in range(described.num_row_groups))
            columns = ([group.column(place) for place in range(group.num_columns)] for group in groups)
            return [[leaf for leaf in of if f"{leaf.path_in_schema}.".startswith(path)] for of in columns]


@dataclass(frozen=True, eq=False)
class _ArrowTable(Table):
    def pieces(self, column: str) -> Iterator["pa.Array"]:
        with _damages_named(self.path, "Arrow"):
            rows = self._piece_rows(column)
            for chunk in self._chunks(column):
                _valid(chunk)
                for start in range(0, len(chunk), rows):
                    yield chunk.slice(start, rows)

    def pictures(self, number: int, column: str, rows: int) -> "Generator[pa.Array, None, None]":
        yield self._chunk(number, column)

    def paths(self, number: int, column: str) -> "Iterator[pa.Array]":
        chunk = self._chunk(number, column)
        texts = chunk.field("path") if chunk.type.num_fields else chunk
        for start in range(0, len(texts), _TEXT_PIECE_ROWS):
            yield texts.slice(start, _TEXT_PIECE_ROWS)

    def group_bytes(self, column: str) -> Sequence[int]:
        return [0] * len(self.group_rows)

    def _null_counts(self, column: str) -> Sequence[int]:
        with _damages_named(self.path, "Arrow"):
            return [_valid(chunk).field("bytes").null_count for chunk in self._chunks(column)]

    def _chunk(self, number: int, column: str) -> "pa.Array":
        with _damages_named(self.path, "Arrow"):
            return _valid(self._chunks(column)[number])

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
        InvalidDataset: damaged, or packed: it is mapped, not unpacked into memory.
    """
    import pyarrow as pa

    with _damages_named(path, "Arrow"):
        if any(is_packed(message.metadata.to_pybytes()) for message in pa.ipc.MessageReader.open_stream(_mapped(path))):
            raise InvalidDataset(
                f"{path} is a packed Arrow file; such files are mapped, so write it without compression, as "
                "`save_to_disk` of the package datasets does"
            )
        reader = pa.ipc.open_stream(_mapped(path))
        return _ArrowTable(path, reader.schema, tuple(batch.num_rows for batch in reader))


def holds_struct_bytes(kind: "pa.DataType") -> bool:
    """Whether a column of this type is a struct with ``bytes``."""
    import pyarrow as pa

    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return place >= 0 and _is_binary(kind.field(place).type)


def holds_bytes(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold the bytes of pictures."""
    return holds_struct_bytes(kind) or _is_binary(kind)


def holds_paths(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold paths of pictures alone: texts, or a struct with ``path``."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place, of_bytes = kind.get_field_index("path"), kind.get_field_index("bytes")
        has_bytes = of_bytes >= 0 and not pa.types.is_null(kind.field(of_bytes).type)
        return place >= 0 and not has_bytes and holds_paths(kind.field(place).type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _arrow_batches(path: Path, columns: Sequence[int]) -> "list[pa.RecordBatch]":
    """Batches with some of the columns, by number."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=list(columns), use_threads=False)
    return list(pa.ipc.open_stream(_mapped(path), options=options))


def _valid(chunk: "pa.Array") -> "pa.Array":
    """Check what a file says of a chunk: lengths and offsets that lead out of the file would be followed."""
    chunk.validate(full=True)
    return chunk


def _mapped(path: Path) -> "pa.MemoryMappedFile":
    """Stream of an Arrow file; one of the other format holds it behind eight bytes."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    mapped.seek(8 if mapped.read(6) == b"ARROW1" else 0)
    return mapped


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
