"""Files that a dataset names by relative paths: found below a folder, and never outside of the data root. Light."""

import os
import posixpath
from pathlib import Path
from stat import S_ISLNK, S_ISREG

from workers.data.confinement import inside


class NamedFiles:
    """Files named by paths below a folder.

    Args:
        folder: that the paths are relative to.
        root: the data root, its links followed.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self._root = folder, root
        self._inside: set[str] = set()

    def inode(self, path: str) -> int | None:
        """Inode of a file, links followed; None if it is no file, or the name is half a surrogate pair.

        Raises:
            InvalidDataset: a link leads out of the data root.
        """
        full = os.path.join(self.folder, path)
        parent = os.path.dirname(full)
        try:
            if parent not in self._inside:
                inside(Path(parent), self._root)
                self._inside.add(parent)
            status = os.lstat(full)
            if S_ISLNK(status.st_mode):
                status = inside(Path(full), self._root).stat()
        except (OSError, UnicodeEncodeError):
            return None
        return status.st_ino if S_ISREG(status.st_mode) else None


def relative_path(path: object, folder: Path) -> str | None:
    """Path below a folder of a path out of a file, normalised; None where it is none, or has ``..``.

    An absolute one that begins with the folder's own is below it.
    """
    if not isinstance(path, str) or "\0" in path or ".." in path.split("/"):
        return None
    if path.startswith("/"):
        path = path.removeprefix(f"{folder}/")
    return None if not path or path.startswith("/") else posixpath.normpath(path)
