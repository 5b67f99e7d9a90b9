"""Errors of the disk: which exceptions say that nothing can be written, or read, at the moment. Light.

A full disk, a quota, a read-only file system and an I/O error are the machine's, and pass: work that ends with one is
set aside and tried again. Libraries wrap them (safetensors, torch, zarr), and some lose the number of the error.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from store import DiskFull
from workers.errors import DiskLow, UserError

DISK_ERRORS: Mapping[int, str] = MappingProxyType(
    {number: errno.errorcode[number] for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)}
)
# As the C library and Rust spell them within the message of a library's own exception.
_SPELT = MappingProxyType({os.strerror(number): code for number, code in DISK_ERRORS.items()})
# numpy counts the items that were not written; torch's writer says no more than that it has failed; Ray has a limit.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|PytorchStreamWriter failed writing|Local disk is full")
_log = logging.getLogger("workers")


def disk_error(error: BaseException) -> str | None:
    """The name of the disk's error (``ENOSPC``, ``EDQUOT``, ``EROFS``, ``EIO``) behind an exception; None if none is.

    Looks along the causes and contexts of the exception. Of a UserError, whose message quotes what a client has named,
    the text is not believed.
    """
    is_low = False
    for link in _chain(error):
        if isinstance(link, DiskLow | DiskFull):
            # What the kernel has said may be told further on: a quota is no full disk.
            is_low = True
            continue
        if isinstance(link, OSError) and (code := DISK_ERRORS.get(link.errno or 0)) is not None:
            return code
        if not isinstance(link, UserError):
            text = str(link)
            spelt = next((code for words, code in _SPELT.items() if words in text), None)
            if spelt is not None:
                return spelt
            if _SHORT_WRITE.search(text):
                return "ENOSPC"
    return "ENOSPC" if is_low else None


@contextmanager
def passing_over_disk_errors() -> Iterator[None]:
    """Go on where the disk does not let something be tidied up, or noted: for what can be left undone."""
    try:
        yield
    except OSError as error:
        if disk_error(error) is None:
            raise
        _log.warning("left undone because of the disk: %s", error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
