"""Picture files that tables name by paths, as ``datasets`` keeps pictures that it was not told to embed.

A path is relative to the folder of the dataset; it stays below the data root, and nothing is downloaded.
"""

from collections.abc import Sequence

from workers.data.files.faults import Faults
from workers.data.files.linked_files import FoundFiles
from workers.data.files.named_files import NamedFiles, relative_path
from workers.data.tabular.table_columns import longest_text
from workers.data.tabular.tables import Table
from workers.errors import InvalidDataset

PATH_MAX_BYTES = 4096


def find_pictures(tables: Sequence[Table], column: str, named: NamedFiles) -> FoundFiles:
    """Find the files of those groups of rows that hold paths alone, in the order of the rows.

    Raises:
        InvalidDataset: paths are missing, not allowed or of no file, named by number and the first ten.
    """
    found, seen = FoundFiles(), set[str]()
    for table in tables:
        faults, first = Faults("row"), 0
        for number, is_alone in enumerate(table.without_bytes(column)):
            if is_alone:
                row = first
                for piece in table.paths(number, column):
                    if (longest := longest_text(piece)) > PATH_MAX_BYTES:
                        raise InvalidDataset(
                            f"{table.path} has a path of {longest} bytes, at most {PATH_MAX_BYTES} are allowed"
                        )
                    for path in piece.to_pylist():
                        _add(path, row, named, found=found, seen=seen, faults=faults)
                        row += 1
            first += table.group_rows[number]
        faults.check(table.path)
    return found


def _add(path: str | None, row: int, named: NamedFiles, *, found: FoundFiles, seen: set[str], faults: Faults) -> None:
    if not path:
        faults.add("rows have neither the bytes of a picture nor a path", row, path)
    elif "://" in path:
        faults.add("paths are URLs (nothing is downloaded: put the files below the dataset's folder)", row, path)
    elif (plain := relative_path(path, named.folder)) is None:
        faults.add(f"paths are not allowed (those below {named.folder}, without '..', are)", row, path)
    elif plain in seen:
        faults.add("files are named twice", row, path)
    elif (inode := named.inode(plain)) is None:
        faults.add(f"files are not there (below {named.folder})", row, path)
    else:
        seen.add(plain)
        found.paths.append(named.folder / plain)
        found.inodes.append(inode)
