"""Child that makes one ONNX file of an upload of several, see ``workers.onnx.uploads.packing``.

Nothing else imports this file. Archives are read here and never unpacked to a disk. What is read of one is bounded by
its unpacked bytes.
"""

import mmap
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from google.protobuf.message import EncodeError
from pydantic import JsonValue

from workers.errors import InvalidTeacher
from workers.onnx.checks.parsing import EXPORT_HINT, listed, parse, short
from workers.onnx.uploads.external_data import SMALLER, external_tensors, take_in

MEMBERS_MAX = 10_000
_HIDDEN = ("__MACOSX",)  # what macOS puts into archives beside the files


def answer(path: str, data: str | None, data_name: str | None, descriptor: int, bytes_max: int) -> JsonValue:
    """Write the one file to the memory of a descriptor; answers its size, or why there is none."""
    try:
        content = _from_parts(Path(path), Path(data), data_name, bytes_max) if data else _from_archive(path, bytes_max)
        if len(content) > bytes_max:
            raise InvalidTeacher(f"the file with its weights has more than the {bytes_max} bytes allowed: {SMALLER}")
    except InvalidTeacher as error:
        return {"error": str(error)}
    with mmap.mmap(descriptor, len(content)) as memory:
        memory[:] = content
    return {"size": len(content)}


def _from_parts(path: Path, data: Path, data_name: str | None, bytes_max: int) -> bytes:
    """One file of a model and the file of its weights."""
    with data.open("rb") as file:
        size = file.seek(0, 2)
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
    taken = set[str]()

    def file_of(location: str) -> memoryview:
        taken.add(location)
        if len(taken) > 1 or (data_name is not None and location != data_name):
            raise InvalidTeacher(
                f"the model's weights lie in {listed(taken)}, the upload's `data` is "
                f"{short(data_name or 'one file')!r}: give it the name that it had when the model was saved, or send "
                "all files as one zip or tar archive"
            )
        return memoryview(mapped)

    return _packed(path.read_bytes(), file_of, bytes_max, is_sent=True)


def _from_archive(path: str, bytes_max: int) -> bytes:
    """One file of an archive with a model and, if it has some, the files of its weights."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
                return _from_members("a zip", sizes, archive.open, bytes_max)
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive if member.isreg()}
            sizes = {name: member.size for name, member in members.items()}
            return _from_members("a tar", sizes, lambda name: _opened(archive, members[name]), bytes_max)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise InvalidTeacher(
            f"not an ONNX file, and as an archive it cannot be read ({type(error).__name__}: "
            f"{short(str(error), 200)}): make one of an ONNX file and its weights with `tar cf` or `zip`, without a "
            "password"
        ) from error


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    assert opened is not None, "isreg() let it through"
    return opened


def _from_members(kind: str, sizes: dict[str, int], open_member: Callable[[str], IO[bytes]], bytes_max: int) -> bytes:
    if len(sizes) > MEMBERS_MAX:
        raise InvalidTeacher(f"the archive has {len(sizes)} files, at most {MEMBERS_MAX} are read")
    paths = {name: PurePosixPath(name) for name in sizes}
    models = [
        name
        for name, path in paths.items()
        if path.suffix.lower() == ".onnx" and not path.name.startswith(".") and not set(path.parts) & set(_HIDDEN)
    ]
    if len(models) != 1:
        what = listed(models) if models else f"no .onnx file (it has {listed(sizes) or 'no files'})"
        raise InvalidTeacher(
            f"not an ONNX file: it is {kind} archive with {what}, and an archive must hold one ONNX file and the "
            f"files of its weights. {EXPORT_HINT}"
        )
    beside = {path.name: name for name, path in paths.items() if path.parent == paths[models[0]].parent}
    left = bytes_max
    kept: dict[str, bytes] = {}

    def read(name: str) -> bytes:
        nonlocal left
        with open_member(name) as stream:
            content = stream.read(left + 1)
        left -= len(content)
        if left < 0:
            raise InvalidTeacher(f"the archive's files have more than the {bytes_max} bytes allowed: {SMALLER}")
        return content

    def file_of(location: str) -> memoryview:
        if location not in beside:
            raise InvalidTeacher(
                f"the model's weights lie in {short(location)!r}, and the archive has {listed(beside)} beside the "
                "model: put all files of the model into it, under the names that they were saved with"
            )
        if location not in kept:
            kept[location] = read(beside[location])
        return memoryview(kept[location])

    try:
        return _packed(read(models[0]), file_of, bytes_max, is_sent=False)
    except InvalidTeacher as error:
        raise InvalidTeacher(f"{short(models[0])!r} of {kind} archive: {error}") from error


def _packed(content: bytes, file_of: Callable[[str], memoryview], bytes_max: int, *, is_sent: bool) -> bytes:
    """Bytes of the model with its weights in it; those that have come if they are in it already."""
    if not content:
        raise InvalidTeacher("the ONNX file is empty: it was cut off, or is still being written")
    model = parse(content)
    if next(external_tensors(model), None) is None:
        if is_sent:
            raise InvalidTeacher("the model has its weights in the file itself: send it alone, without `data`")
        return content
    take_in(model, file_of, bytes_max)
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InvalidTeacher(
            f"the model with its weights has 2 GiB or more, which no single ONNX file can have: {SMALLER}"
        ) from error
