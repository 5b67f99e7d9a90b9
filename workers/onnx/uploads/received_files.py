"""Files of an upload, read within the child that packs it: a model and its weights, as two parts or in an archive.

Archives are read where they are and never unpacked to a disk. What is read of one is bounded by its unpacked bytes.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from workers.errors import InvalidTeacher
from workers.onnx.checks.check import FILE_MAX_BYTES
from workers.onnx.checks.external_data import SMALLER
from workers.onnx.checks.parsing import EXPORT_HINT, listed, short

MEMBERS_MAX = 10_000
_HIDDEN = ("__MACOSX",)  # what macOS puts into archives beside the files


class ReceivedFiles(NamedTuple):
    """Files of an upload.

    Attributes:
        model: bytes of the ONNX file.
        size_of: bytes of a file of weights by its plain name; raises InvalidTeacher if it has not come.
        open_file, position_of: see ``external_data.WeightFiles``.
        has_data: it came with a file of weights of its own, as a second part.
    """

    model: bytes
    size_of: Callable[[str], int]
    open_file: Callable[[str], AbstractContextManager[IO[bytes]]]
    position_of: Callable[[str], int]
    has_data: bool


@contextmanager
def open_received(path: Path, data: Path | None, data_name: str | None, bytes_max: int) -> Iterator[ReceivedFiles]:
    """Open the files of an upload.

    Args:
        path: an ONNX file, or an archive with one.
        data: the file of its weights; None of an archive.
        data_name: the name under which that came; None is not known.
        bytes_max: of all files together.

    Raises:
        InvalidTeacher: they do not belong together, or are damaged, hostile or too large; while they are read, too.
    """
    if data is not None:
        yield _parts(path, data, data_name)
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
                members = _Members("a zip", sizes, archive.open, bytes_max=bytes_max)
                with members.named():
                    yield members.received()
        else:
            with tarfile.open(path) as tar:
                infos = {member.name: member for member in tar if member.isreg()}
                sizes = {name: member.size for name, member in infos.items()}
                members = _Members(
                    "a tar",
                    sizes,
                    lambda name: _opened(tar, infos[name]),
                    lambda name: infos[name].offset,
                    bytes_max=bytes_max,
                )
                with members.named():
                    yield members.received()
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


def _parts(path: Path, data: Path, data_name: str | None) -> ReceivedFiles:
    size, taken = data.stat().st_size, set[str]()
    model_bytes = path.stat().st_size
    _check_model_size(model_bytes)

    def size_of(location: str) -> int:
        taken.add(location)
        if len(taken) > 1 or (data_name is not None and location != data_name):
            raise InvalidTeacher(
                f"the model's weights lie in {listed(taken)}, the upload's `data` is "
                f"{short(data_name or 'one file')!r}: give it the name that it had when the model was saved, or send "
                "all files as one zip or tar archive"
            )
        return size

    return ReceivedFiles(path.read_bytes(), size_of, lambda _: data.open("rb"), lambda _: 0, has_data=True)


class _Members:
    """Files of an archive: the model, and those beside it."""

    def __init__(
        self,
        kind: str,
        sizes: dict[str, int],
        open_member: Callable[[str], IO[bytes]],
        position_of: Callable[[str], int] = lambda name: 0,
        *,
        bytes_max: int,
    ) -> None:
        if len(sizes) > MEMBERS_MAX:
            raise InvalidTeacher(f"the archive has {len(sizes)} files, at most {MEMBERS_MAX} are read")
        self._kind, self._sizes, self._open_member, self._position_of = kind, sizes, open_member, position_of
        self._left = self._bytes_max = bytes_max
        self._model = self._find_model()
        folder = PurePosixPath(self._model).parent
        self._beside = {path.name: name for name in sizes if (path := PurePosixPath(name)).parent == folder}
        self._known: set[str] = set()

    def received(self) -> ReceivedFiles:
        size = self._size_of_member(self._model)
        _check_model_size(size)
        with self._open_member(self._model) as stream:
            model = stream.read()
        return ReceivedFiles(
            model,
            self._size_of,
            lambda location: self._open_member(self._beside[location]),
            lambda location: self._position_of(self._beside[location]),
            has_data=False,
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Begin a refusal with the model's name."""
        try:
            yield
        except InvalidTeacher as error:
            raise InvalidTeacher(f"{short(self._model)!r} of {self._kind} archive: {error}") from error

    def _find_model(self) -> str:
        models = [
            name
            for name in self._sizes
            if (path := PurePosixPath(name)).suffix.lower() == ".onnx"
            and not path.name.startswith(".")
            and not set(path.parts) & set(_HIDDEN)
        ]
        if len(models) != 1:
            what = listed(models) if models else f"no .onnx file (it has {listed(self._sizes) or 'no files'})"
            raise InvalidTeacher(
                f"not an ONNX file: it is {self._kind} archive with {what}, and an archive must hold one ONNX file "
                f"and the files of its weights. {EXPORT_HINT}"
            )
        return models[0]

    def _size_of(self, location: str) -> int:
        if location not in self._beside:
            raise InvalidTeacher(
                f"the model's weights lie in {short(location)!r}, and the archive has {listed(self._beside)} beside "
                "the model: put all files of the model into it, under the names that they were saved with"
            )
        return self._size_of_member(self._beside[location])

    def _size_of_member(self, name: str) -> int:
        """Unpacked bytes of a member, as its header says: more is not read of it."""
        if name not in self._known:
            self._known.add(name)
            self._left -= self._sizes[name]
        if self._left < 0:
            raise InvalidTeacher(f"the archive's files have more than the {self._bytes_max} bytes allowed: {SMALLER}")
        return self._sizes[name]


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    assert opened is not None, "isreg() let it through"
    return opened


def _check_model_size(size: int) -> None:
    if size > FILE_MAX_BYTES:
        raise InvalidTeacher(
            f"the ONNX file has {size} bytes, and no ONNX file has 2 GiB or more: save it again with its weights "
            "beside it (onnx.save(model, path, save_as_external_data=True)), and send both files"
        )
