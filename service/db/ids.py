"""Ids of rows: made so that they sort by time, and recognised before the database is asked for one."""

import re
import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32 in ASCII order, so that ids sort by time
_RANDOM_BITS = 80
_ID_CHARS = 26
_ID = re.compile(r"[a-z]{2,4}_[0-9a-z]{26}")
_id_lock = threading.Lock()
_last_number = 0


def new_id(prefix: str) -> str:
    """A new id such as ``job_01k9v3...``: milliseconds since 1970 (48 bits) and 80 random bits, in base 32.

    Ids made by one process rise strictly, those of several rise with their clocks.
    """
    global _last_number
    number = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    with _id_lock:
        # Within one millisecond the random part decides nothing: count up instead.
        number = _last_number = max(number, _last_number + 1)
    digits = (_ALPHABET[number >> (5 * place) & 31] for place in reversed(range(_ID_CHARS)))
    return f"{prefix}_{''.join(digits)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of an id; PostgreSQL refuses some that have not, such as a NUL character."""
    return _ID.fullmatch(text) is not None
