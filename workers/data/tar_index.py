"""Index of WebDataset shards: where each sample's picture lies in its tar file, and the sample's label.

A shard is a tar file without compression whose members ``KEY.EXTENSION`` of one sample follow each other. Headers and
labels are read once, pictures when they are wanted, by their offset; nothing is unpacked to the disk. Members that are
no plain files (links, devices, sparse files) are left out, so where they point does not matter. Light.

Legend: N samples of a shard.
"""

import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from workers.data.labels import LABELS_MAX
from workers.errors import InvalidDataset
from workers.texts import listed, shortened

# Extensions of pictures, in lower case.
PICTURES = ("bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
# Keys of a sample's JSON that are its label, unless the client names one.
_LABEL_KEYS = ("label", "cls")
# Of a member that holds a label.
_LABEL_MAX_BYTES = 1 << 20
_BLOCK_BYTES = 512
# Samples of the shards that a process keeps indexed, at about 60 bytes each.
_HELD_SAMPLES = 2_000_000
# As the package webdataset takes names apart.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class _Place(NamedTuple):
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Shard:
    """Samples of a tar file, in its order.

    Attributes:
        path: of the file.
        offsets_N, sizes_N: int64, of the pictures in the file, in bytes.
        labels: different ones, as text.
        labels_N: int32, which of ``labels`` each sample has.
        keys: of the samples, one after the other, with a line break after each.
        ignored: members that belong to no sample.
    """

    path: Path
    offsets_N: NDArray[np.int64]
    sizes_N: NDArray[np.int64]
    labels: tuple[str, ...]
    labels_N: NDArray[np.int32]
    keys: bytes
    ignored: int

    def __len__(self) -> int:
        return len(self.offsets_N)

    def key_list(self) -> list[str]:
        """Key of each sample."""
        return self.keys.decode(errors="surrogateescape").split("\n")[:-1]


_held: "OrderedDict[tuple[object, ...], Shard]" = OrderedDict()
_held_lock = Lock()


def index_shard(path: Path, image: str | None, label: str | None) -> Shard:
    """Index a shard, or give the index that this process made of the same file before.

    Args:
        image: extension of the pictures; None takes the only picture of a sample.
        label: extension of the labels, or key of the label in a sample's ``.json``; None takes ``.cls``, or the key
            ``label`` or ``cls``.

    Raises:
        InvalidDataset: damaged or cut, packed, or with a sample that lacks its picture or label.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror}") from error
    known = (path, status.st_size, status.st_mtime_ns, image, label)
    with _held_lock:
        if known in _held:
            _held.move_to_end(known)
            return _held[known]
    shard = _Scan(path, image, label).shard()
    with _held_lock:
        _held[known] = shard
        while len(_held) > 1 and sum(map(len, _held.values())) > _HELD_SAMPLES:
            _held.popitem(last=False)
    return shard


class _Scan:
    def __init__(self, path: Path, image: str | None, label: str | None) -> None:
        self._path = path
        self._image = image
        self._label = label
        self._places: list[_Place] = []
        self._labels: dict[str, int] = {}
        self._labels_N: list[int] = []
        self._keys: list[str] = []
        self._ignored = 0

    def shard(self) -> Shard:
        """Read the file's headers and labels."""
        try:
            with self._path.open("rb") as file:
                if file.read(2) == b"\x1f\x8b":
                    raise InvalidDataset(
                        f"{self._path} is packed by gzip, which cannot be read at random: unpack it with gunzip"
                    )
                file.seek(0)
                self._scan(file)
        except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError) as error:
            if isinstance(error, InvalidDataset):
                raise
            raise InvalidDataset(f"{self._path} cannot be read as a tar file: {shortened(error)}") from error
        places = np.array(self._places, dtype=np.int64).reshape(-1, 2)
        return Shard(
            path=self._path,
            offsets_N=np.ascontiguousarray(places[:, 0]),
            sizes_N=np.ascontiguousarray(places[:, 1]),
            labels=tuple(self._labels),
            labels_N=np.array(self._labels_N, dtype=np.int32),
            keys="".join(f"{key}\n" for key in self._keys).encode(errors="surrogateescape"),
            ignored=self._ignored,
        )

    def _scan(self, file: IO[bytes]) -> None:
        key, members = "", dict[str, _Place]()
        for member_key, extension, place in self._members(file):
            if member_key != key:
                self._add(file, key, members)
                key, members = member_key, {}
            if extension in members:
                raise InvalidDataset(f"{self._path}: the sample {key!r:.120} has two members .{extension}: keep one")
            members[extension] = place
        self._add(file, key, members)

    def _members(self, file: IO[bytes]) -> Iterator[tuple[str, str, _Place]]:
        """Key, extension and place of each member that is a plain file with both."""
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # It would keep all headers.
                cast(Any, tar).members.clear()
                name = _NAME.fullmatch(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or name is None or "\n" in member.name:
                    self._ignored += 1
                    continue
                yield name[1], name[2].lower(), _Place(member.offset_data, member.size)
            # At a damaged header tarfile ends as at the end of the file, which a block of zeros marks.
            file.seek(tar.offset)
            block = file.read(_BLOCK_BYTES)
        if len(block) < _BLOCK_BYTES or any(block):
            raise InvalidDataset(
                f"{self._path} has no end of a tar file at byte {tar.offset}, behind {len(self._keys)} samples: it is "
                "damaged, was cut, or was never closed; get it again"
            )

    def _add(self, file: IO[bytes], key: str, members: Mapping[str, _Place]) -> None:
        """Add a sample; members with neither picture nor label, a README say, are none."""
        picture = self._picture(key, members)
        label = self._label_of(file, key, members)
        if picture is None and label is None:
            self._ignored += len(members)
            return
        if picture is None or label is None:
            lacking = self._lacking_picture() if picture is None else self._lacking_label(file, members)
            raise InvalidDataset(
                f"{self._path}: the sample {key!r:.120} has no {lacking}. Its members are {listed(members)}; the "
                "members of a sample must follow each other, as tar --sort=name packs them"
            )
        self._places.append(picture)
        self._labels_N.append(self._labels.setdefault(label, len(self._labels)))
        self._keys.append(key)
        if len(self._keys) > LABELS_MAX:
            raise InvalidDataset(f"{self._path} has more than {LABELS_MAX} samples: split it")

    def _picture(self, key: str, members: Mapping[str, _Place]) -> _Place | None:
        if self._image is not None:
            return members.get(self._image.lower().lstrip("."))
        found = [extension for extension in PICTURES if extension in members]
        if len(found) > 1:
            raise InvalidDataset(
                f"{self._path}: the sample {key!r:.120} has several pictures, {listed(found)}: set 'image' to the "
                "extension of those to use"
            )
        return members[found[0]] if found else None

    def _label_of(self, file: IO[bytes], key: str, members: Mapping[str, _Place]) -> str | None:
        extension = "cls" if self._label is None else self._label.lower().lstrip(".")
        if extension in members:
            text = self._content(file, key, members[extension]).strip()
            return text or None
        described = self._described(file, key, members)
        keys = _LABEL_KEYS if self._label is None else (self._label,)
        label = next((described[name] for name in keys if name in described), None)
        if label is None or isinstance(label, str):
            return label or None
        if isinstance(label, int):
            return str(int(label))
        raise InvalidDataset(
            f"{self._path}: the sample {key!r:.120} has the label {shortened(repr(label), 80)} in its .json, which is "
            "no integer or string"
        )

    def _described(self, file: IO[bytes], key: str, members: Mapping[str, _Place]) -> Mapping[str, object]:
        """The sample's JSON object; empty where it has none."""
        if "json" not in members:
            return {}
        try:
            found = json.loads(self._content(file, key, members["json"]))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidDataset):
                raise
            raise InvalidDataset(
                f"{self._path}: the .json of the sample {key!r:.120} cannot be read: {error}"
            ) from error
        return found if isinstance(found, dict) else {}

    def _content(self, file: IO[bytes], key: str, place: _Place) -> str:
        if place.size > _LABEL_MAX_BYTES:
            raise InvalidDataset(
                f"{self._path}: the label of the sample {key!r:.120} has {place.size} bytes, at most "
                f"{_LABEL_MAX_BYTES} are read"
            )
        file.seek(place.offset)
        try:
            return file.read(place.size).decode()
        except UnicodeDecodeError as error:
            raise InvalidDataset(f"{self._path}: the label of the sample {key!r:.120} is no UTF-8") from error

    def _lacking_picture(self) -> str:
        return f"picture .{self._image.lstrip('.')}" if self._image else f"picture (.{', .'.join(PICTURES)})"

    def _lacking_label(self, file: IO[bytes], members: Mapping[str, _Place]) -> str:
        keys = listed(self._described(file, "", members))
        where = f"label {self._label!r}" if self._label else "label (.cls, or 'label' or 'cls' in its .json)"
        known = f" ({keys})" if keys else ""
        return f"{where}: set 'label' to the extension of the labels, or to their key in the .json{known}"
