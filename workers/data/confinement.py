"""Confinement of dataset files to the operator's data root.

A client names a path below the data root and nothing else: ``..``, absolute paths and symbolic links that lead out of
the root are refused. A user who may write below the root is trusted not to swap files between this check and the
reading.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from workers.errors import InvalidDataset
from workers.texts import difference


@contextmanager
def named_below(data_root: Path) -> Iterator[None]:
    """Name files in the message of an InvalidDataset relative to the data root, as clients name them.

    Messages become answers of the API, which tell nobody where the server has its folders.
    """
    try:
        yield
    except InvalidDataset as error:
        root = str(data_root.resolve())
        message = str(error) if root == "/" else str(error).replace(f"{root}/", "").replace(root, "the data root")
        raise InvalidDataset(message) from error


def resolve(given_path: str, data_root: Path) -> Path:
    """Absolute path for a client's path below ``data_root``, symbolic links followed.

    Raises:
        InvalidDataset: it is absolute, contains ``..``, leads out of ``data_root`` or does not exist.
    """
    root, given = root_folder(data_root), PurePosixPath(given_path)
    if given.is_absolute():
        # One below the data root would be shown as the relative path that is asked for.
        shown = "" if given.is_relative_to(root) else f" {given_path!r}"
        raise InvalidDataset(
            f"the dataset path{shown} is absolute, which is not allowed: give a path relative to the data root"
        )
    if ".." in given.parts or "\0" in given_path:
        raise InvalidDataset(
            f"dataset path {given_path!r} is not allowed: give a path relative to the data root, without '..'"
        )
    path = inside(root / given, root)
    try:
        found = path.exists()
    except OSError as error:
        raise InvalidDataset(f"dataset path {given_path!r:.200} cannot be looked at: {error.strerror}") from error
    if not found:
        alike = _alike(root, given)
        raise InvalidDataset(
            f"dataset path {given_path!r} does not exist below the data root{f' ({alike})' if alike else ''}"
        )
    return path


def _alike(root: Path, given: PurePosixPath) -> str | None:
    """Difference of the first missing name of ``given`` from an existing one that looks alike; None if none does."""
    folder = root
    for name in given.parts:
        if not (folder / name).exists():
            break
        folder /= name
    try:
        return next((found for other in sorted(os.listdir(folder)) if (found := difference(name, other))), None)
    except OSError:
        return None


def root_folder(data_root: Path) -> Path:
    """Data root with its symbolic links followed.

    Raises:
        InvalidDataset: it is no folder.
    """
    root = data_root.resolve()
    if not root.is_dir():
        raise InvalidDataset("the data root is not a folder; set RETORT_DATA_ROOT to one (`retort doctor` names it)")
    return root


def inside(path: Path, root: Path) -> Path:
    """Follow the symbolic links of ``path``.

    Raises:
        InvalidDataset: they lead out of ``root``, or in a circle.
    """
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidDataset(f"dataset path {path} cannot be followed: {error}") from error
    if not resolved.is_relative_to(root):
        raise InvalidDataset(f"dataset path {path} is a symbolic link that leads out of the data root")
    return resolved
