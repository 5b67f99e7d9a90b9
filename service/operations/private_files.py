"""Files for this user alone: durable copies with their digests, new files and folders, walks over folders."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from service.settings import MiB
from workers.files import replacing, sync, sync_folder


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 (64 hex digits) of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def copy_file(source: Path, target: Path) -> FileEntry:
    """A durable copy for this user alone, and what was written. Raises FileNotFoundError, having made nothing."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading:
        make_folder(target.parent)
        with create_private(target) as writing:
            while block := reading.read(MiB):
                digest.update(block)
                size += len(block)
                writing.write(block)
            sync(writing)
    return FileEntry(size_bytes=size, sha256=digest.hexdigest())


def entry_of(path: Path) -> FileEntry:
    """Size and digest of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(size_bytes=file.tell(), sha256=sha256)


def files_below(top: Path) -> Iterator[Path]:
    """The files below a folder, without what is still being written."""
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.endswith(".partial")]
        for name in names:
            path = Path(folder, name)
            # Bytes that are no UTF-8 are no name of ours, and cannot stand in a manifest.
            if not name.endswith(".partial") and _is_utf8(name) and path.is_file():
                yield path


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_private(path: Path, content: str) -> None:
    """A file for this user alone, whole or not at all."""
    with replacing(path, path.name) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content.encode())


def create_private(path: Path) -> BinaryIO:
    """A new file for this user alone, open for writing."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def create_secret(path: Path, secret: str) -> None:
    """A file with a secret, whole; of several processes that make it at once the first one's stays."""
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with create_private(partial) as file:
            file.write(f"{secret}\n".encode())
            sync(file)
        os.link(partial, path)
        sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Creates a folder, and those above it, for this user alone."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing in it, or is not there."""
    return not folder.exists() or not any(folder.iterdir())


def nearest_folder(path: Path) -> Path:
    """The path, or the lowest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def sync_folders(top: Path) -> None:
    """Make the names in a folder, and in those below it, durable."""
    for folder, _, _ in os.walk(top):
        sync_folder(Path(folder))
