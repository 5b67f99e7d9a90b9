"""Text that strangers chose (names of files, classes, graph nodes), made fit to be stored, sent and printed. Light.

A file's name that is no UTF-8 comes from Python with lone surrogates (PEP 383), which no encoder takes; PostgreSQL
refuses U+0000; terminals obey control characters, and bidirectional ones reorder what is read.
"""

import re
from typing import Any

# Half of a surrogate pair, and NUL.
_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")
# All of C0 but tab and newline, DEL, C1, line and paragraph separators, bidirectional marks, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What makes a spreadsheet take a cell as a formula (OWASP, CSV injection), the full-width forms of East Asia included.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def storable(value: Any) -> Any:  # noqa: ANN401  # JSON as it comes
    r"""Returns a JSON value of which every text, keys included, can be encoded as UTF-8 and kept by PostgreSQL.

    The byte of a file's name that was no UTF-8 is written ``\xfc``, NUL ``\x00``, any other lone surrogate ``\ud800``.
    """
    match value:
        case str():
            return _UNSTORABLE.sub(_escaped, value)
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
    return value


def printable(text: str) -> str:
    r"""Returns the text with all that a terminal would obey written out (``\x1b``); tabs and newlines stay."""
    return _UNPRINTABLE.sub(_escaped, text)


def printable_json(text: str) -> str:
    r"""Returns JSON text with all that a terminal would obey as JSON's own escapes (``\u009b``): the same document."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def cell(value: Any) -> Any:  # noqa: ANN401  # of any column
    """Returns a value for CSV: a text neither moves the cursor nor is a formula, which an apostrophe before it stops.

    Numbers stay as they are. Source: OWASP, "CSV injection".
    """
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if value.startswith(_FORMULA) else shown


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
