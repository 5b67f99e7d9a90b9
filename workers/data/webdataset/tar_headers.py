"""Headers of a tar file without compression, read one after the other by their offsets; contents are skipped. Light.

A plain header, and one of extended attributes that change neither name nor size (times, which Python's own tarfile
writes for every member), is read here; any other is left to tarfile, which takes ten times as long for each. Both find
the same members. A shard of WebDataset has hundreds of thousands.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

BLOCK_BYTES = 512
# Read at once: a header, a small content such as a label, and the next header.
_WINDOW_BYTES = 8192
_ZEROS = bytes(BLOCK_BYTES)
_PLAIN = (b"0", b"\0")
_EXTENDED, _OF_ALL = b"x", b"g"
# Of extended attributes that only tarfile applies.
_MEANING = re.compile(rb" (?:path|size)=|GNU\.sparse|hdrcharset")
_EXTENDED_MAX_BYTES = 4096
# zlib's sum of bytes is modulo this.
_ADLER = 65521


class Member(NamedTuple):
    """Member of a tar file.

    Attributes:
        offset, size: of its content, in bytes.
        is_file: whether it is a plain file.
        is_folder: whether it is a folder.
    """

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool


class NoEnd(ValueError):
    """Neither a header nor the end of a tar file is at ``offset``."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        super().__init__(f"no end of a tar file at byte {offset}")


class TarReader:
    """Reader of a tar file's headers, and of small contents beside them.

    Args:
        file: open for reading, without compression.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._descriptor = file.fileno()
        self._size = os.fstat(self._descriptor).st_size
        self._window, self._start = b"", 0

    def members(self) -> Iterator[Member]:
        """Members in the order of the file.

        Raises:
            NoEnd: damaged or cut.
            tarfile.TarError, OSError, ValueError: no tar file.
        """
        offset = 0
        while True:
            block = self.read(offset, BLOCK_BYTES)
            if block == _ZEROS:
                return
            found = self._plain(block, offset)
            if found is None and block[156:157] == _OF_ALL:
                yield from (member for member, _ in self._with_tarfile(offset, all_of_them=True))
                return
            if found is None:
                found = next(self._with_tarfile(offset, all_of_them=False))
            member, offset = found
            yield member

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        place = offset - self._start
        if not 0 <= place <= len(self._window) - size:
            self._window = os.pread(self._descriptor, max(size, _WINDOW_BYTES), offset)
            self._start, place = offset, 0
        return self._window[place : place + size]

    def _plain(self, block: bytes, offset: int) -> tuple[Member, int] | None:
        """Member of a header, and the offset of the next one; None where tarfile is needed."""
        kind = block[156:157]
        if kind == _EXTENDED:
            size = _size(block)
            if size is None or size > _EXTENDED_MAX_BYTES:
                return None
            if _MEANING.search(self.read(offset + BLOCK_BYTES, size)):
                return None
            offset += BLOCK_BYTES + _padded(size)
            block = self.read(offset, BLOCK_BYTES)
            kind = block[156:157]
        size = _size(block)
        if kind not in _PLAIN or size is None:
            return None
        name = block[: block.find(b"\0", 0, 100)] if b"\0" in block[:100] else block[:100]
        if block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        after = offset + BLOCK_BYTES + _padded(size)
        # A folder of the oldest form has a slash at its end. tarfile says where a content is cut.
        if name.endswith(b"/") or after > self._size:
            return None
        text = name.decode(errors="surrogateescape")
        return Member(text, offset + BLOCK_BYTES, size, is_file=True, is_folder=False), after

    def _with_tarfile(self, offset: int, *, all_of_them: bool) -> Iterator[tuple[Member, int]]:
        """Members from an offset on, or the first of them, and the offset behind each."""
        self._file.seek(offset)
        with tarfile.TarFile(fileobj=self._file, mode="r") as tar:
            member = tar.next()
            if member is None and not all_of_them:
                raise NoEnd(offset)
            while member is not None:
                if member.size < 0 or member.offset_data <= member.offset:
                    raise NoEnd(member.offset)  # CVE-2025-8194: it would read the same headers for ever
                # It would keep all headers.
                cast(Any, tar).members.clear()
                is_file = member.isreg() and not member.issparse()
                yield (
                    Member(member.name, member.offset_data, member.size, is_file=is_file, is_folder=member.isdir()),
                    tar.offset,
                )
                if not all_of_them:
                    return
                member = tar.next()
            # At a damaged header it ends as at the end of the file, which a block of zeros marks.
            if self.read(tar.offset, BLOCK_BYTES) != _ZEROS:
                raise NoEnd(tar.offset)


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _size(block: bytes) -> int | None:
    """Size in bytes of a header's content; None where the header is damaged, or has it in another form."""
    try:
        stored = int(block[148:156].strip(b" \0"), 8)
        size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    # The sum of all bytes, those of the sum's own field as eight spaces; the lower half of Adler-32 is a sum, and one.
    total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 256
    return size if size >= 0 and (total - stored) % _ADLER == 0 else None
