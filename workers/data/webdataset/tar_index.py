"""Index of WebDataset shards: where each sample's picture lies in its tar file, and the sample's label.

A shard is a tar file without compression whose members ``KEY.EXTENSION`` of one sample follow each other. Headers and
labels are read once, pictures when they are wanted, by their offset; nothing is unpacked to the disk. Members that are
no plain files (links, devices, sparse files) are left out, so where they point does not matter. What was read of a
shard is kept, see ``kept_indexes``. Light.

Legend: N samples of a shard.
"""

import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from workers.data.labelling.labels import LABELS_MAX
from workers.data.webdataset import kept_indexes
from workers.data.webdataset.shard import Shard
from workers.data.webdataset.tar_headers import NoEnd, TarReader
from workers.errors import InvalidDataset
from workers.texts import label_text, listed, shortened
from workers.unlabelled import NO_LABEL

# Extensions of pictures, in lower case.
PICTURES = ("bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
# Keys of a sample's JSON that are its label, unless the client names one.
_LABEL_KEYS = ("label", "cls")
# Of a member that holds a label.
_LABEL_MAX_BYTES = 1 << 20
# Samples of the shards that a process keeps indexed, at about 60 bytes each.
_HELD_SAMPLES = 2_000_000
# As the package webdataset takes names apart.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class _Place(NamedTuple):
    offset: int
    size: int


_held: "OrderedDict[kept_indexes.Key, Shard]" = OrderedDict()
_held_lock = Lock()


def index_shard(path: Path, image: str | None, label: str | None) -> Shard:
    """Index a shard, or give the index that this process made of the same file before.

    Args:
        image: extension of the pictures; None takes the only picture of a sample.
        label: extension of the labels, or key of the label in a sample's ``.json``; None takes ``.cls``, or the key
            ``label`` or ``cls``.

    Raises:
        InvalidDataset: damaged or cut, packed, or with a label that has no picture.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror}") from error
    known = kept_indexes.Key(path, status.st_size, status.st_mtime_ns, image=image, label=label)
    with _held_lock:
        if known in _held:
            _held.move_to_end(known)
            return _held[known]
    shard = kept_indexes.read(known)
    if shard is None:
        shard = _Scan(path, image, label).shard()
        kept_indexes.keep(known, shard)
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
        self._unlabelled, self._has_more = "", False

    def shard(self) -> Shard:
        """Read the file's headers and labels."""
        try:
            with self._path.open("rb") as file:
                if file.read(2) == b"\x1f\x8b":
                    raise InvalidDataset(
                        f"{self._path} is packed by gzip, which cannot be read at random: unpack it with gunzip"
                    )
                self._scan(TarReader(file))
        except NoEnd as error:
            raise InvalidDataset(
                f"{self._path} has {error}, behind {len(self._keys)} samples: it is damaged, was cut, or was never "
                "closed; get it again"
            ) from error
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
            unlabelled=self._unlabelled,
            has_more=self._has_more,
        )

    def _scan(self, reader: TarReader) -> None:
        key, members = "", dict[str, _Place]()
        for member_key, extension, place in self._members(reader):
            if member_key != key:
                self._add(reader, key, members)
                key, members = member_key, {}
            if extension in members:
                raise InvalidDataset(f"{self._path}: the sample {key!r:.120} has two members .{extension}: keep one")
            members[extension] = place
        self._add(reader, key, members)

    def _members(self, reader: TarReader) -> Iterator[tuple[str, str, _Place]]:
        """Key, extension and place of each member that is a plain file with both."""
        for member in reader.members():
            if member.is_folder:
                continue
            name = _NAME.fullmatch(member.name)
            if not member.is_file or name is None or "\n" in member.name:
                self._ignored += 1
                continue
            yield name[1], name[2].lower(), _Place(member.offset, member.size)

    def _add(self, reader: TarReader, key: str, members: Mapping[str, _Place]) -> None:
        """Add a sample; members with neither picture nor label, a README say, are none."""
        picture = self._picture(key, members)
        label = self._label_of(reader, key, members)
        if picture is None and label is None:
            self._ignored += len(members)
            return
        if picture is None:
            raise InvalidDataset(
                f"{self._path}: the sample {key!r:.120} has no {self._lacking_picture()}. Its members are "
                f"{listed(members)}; the members of a sample must follow each other, as tar --sort=name packs them"
            )
        if label is None and (not self._unlabelled or (len(members) > 1 and not self._has_more)):
            keys = listed(self._described(reader, key, members))
            self._unlabelled = f"{key!r:.120} has {listed(members)}" + (f" with the keys {keys}" if keys else "")
            self._has_more = len(members) > 1
        self._places.append(picture)
        self._labels_N.append(NO_LABEL if label is None else self._labels.setdefault(label, len(self._labels)))
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

    def _label_of(self, reader: TarReader, key: str, members: Mapping[str, _Place]) -> str | None:
        extension = "cls" if self._label is None else self._label.lower().lstrip(".")
        if extension in members:
            return label_text(self._content(reader, key, members[extension]))
        described = self._described(reader, key, members)
        keys = _LABEL_KEYS if self._label is None else (self._label,)
        label = next((described[name] for name in keys if name in described), None)
        if label is None or isinstance(label, str):
            return label_text(label or "")
        if isinstance(label, int):
            return label_text(str(int(label)))
        raise InvalidDataset(
            f"{self._path}: the sample {key!r:.120} has the label {shortened(repr(label), 80)} in its .json, which is "
            "no integer or string"
        )

    def _described(self, reader: TarReader, key: str, members: Mapping[str, _Place]) -> Mapping[str, object]:
        """The sample's JSON object; empty where it has none."""
        if "json" not in members:
            return {}
        try:
            found = json.loads(self._content(reader, key, members["json"]))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidDataset):
                raise
            raise InvalidDataset(
                f"{self._path}: the .json of the sample {key!r:.120} cannot be read: {error}"
            ) from error
        return found if isinstance(found, dict) else {}

    def _content(self, reader: TarReader, key: str, place: _Place) -> str:
        if place.size > _LABEL_MAX_BYTES:
            raise InvalidDataset(
                f"{self._path}: the label of the sample {key!r:.120} has {place.size} bytes, at most "
                f"{_LABEL_MAX_BYTES} are read"
            )
        try:
            return reader.read(place.offset, place.size).decode()
        except UnicodeDecodeError as error:
            raise InvalidDataset(f"{self._path}: the label of the sample {key!r:.120} is no UTF-8") from error

    def _lacking_picture(self) -> str:
        return f"picture .{self._image.lstrip('.')}" if self._image else f"picture (.{', .'.join(PICTURES)})"
