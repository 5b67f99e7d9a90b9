"""Text that strangers chose (names of files, classes, graph nodes), made fit to be stored, sent and printed. Light.

A file's name that is no UTF-8 comes from Python with lone surrogates (PEP 383), which no encoder takes; PostgreSQL
refuses U+0000; terminals obey control characters, and bidirectional ones reorder what is read.
"""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Half of a surrogate pair, and NUL.
_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")
# All of C0 but tab and newline, DEL, C1, line and paragraph separators, bidirectional marks, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What makes a spreadsheet take a cell as a formula (OWASP, CSV injection), the full-width forms of East Asia included.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

LISTED_MAX = 10
# Of ``difflib``'s ratio, 1 for equal names: "nmae" is as near to "name" as 0.75, "tags" to "dataset" as 0.55.
_NEAR = 0.7


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


def shortened(value: object, characters: int = 200) -> str:
    """Returns the text of a value, cut where it is longer: for what strangers chose the length of, in a message."""
    text = str(value)
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def without_folders(value: Any, folders: Mapping[str, str]) -> Any:  # noqa: ANN401  # JSON as it comes
    """Returns a JSON value in whose texts what lies below some folders is named relative to them.

    Args:
        folders: by absolute path, what stands for the folder itself.
    """
    match value:
        case str():
            for folder, name in folders.items():
                if folder in value:
                    before = rf"(?<![\w./-]){re.escape(folder)}"
                    value = re.sub(rf"{before}/(?=[^\s'\"])", "", value)
                    value = re.sub(rf"{before}(?![\w-])", name, value)
        case dict():
            return {key: without_folders(item, folders) for key, item in value.items()}
        case list() | tuple():
            return [without_folders(item, folders) for item in value]
    return value


def listed(names: Iterable[str]) -> str:
    """Returns the first ten of names, by commas, and how many there are of more."""
    known = list(names)
    shown = ", ".join(shortened(name, 80) for name in known[:LISTED_MAX])
    return f"{shown}, ... ({len(known)} in all)" if len(known) > LISTED_MAX else shown


def some_of(names: Sequence[str], most: int) -> str:
    """Returns the first of names, by commas, and how many more there are, as part of a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def label_text(text: str) -> str | None:
    """Returns the label of a picture as a file has it; None for none: -1 is no class anywhere."""
    text = text.strip()
    return None if text in ("", "-1") else text


def cell(value: Any) -> Any:  # noqa: ANN401  # of any column
    """Returns a value for CSV: a text neither moves the cursor nor is a formula, which an apostrophe before it stops.

    Numbers stay as they are. Source: OWASP, "CSV injection".
    """
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if value.startswith(_FORMULA) else shown


def composed(name: str) -> str:
    """Returns the name in Unicode's normal form C: macOS writes file names decomposed, keyboards compose."""
    return unicodedata.normalize("NFC", name)


def code_points(name: str) -> str:
    """Returns the name with all that is not ASCII as its code point: ``cafe<U+0301>``."""
    return re.sub(r"[^\x20-\x7e]", lambda found: f"<U+{ord(found[0]):04X}>", name)


def difference(one: str, other: str) -> str | None:
    """Returns how two names differ that a reader may take for the same, such as "only in case"; None if they do not."""
    if case_aside(one) == case_aside(other):
        how = "in Unicode's normal form" if composed(one) == composed(other) else "in case"
    elif _shown(one) == _shown(other):
        how = "in blanks, forms of letters, or what does not show"
    else:
        return None
    return f"'{code_points(one)}' and '{code_points(other)}' differ only {how}"


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Returns the name that was probably meant by one that is none of them; None where none is near. Case aside."""
    by_folded = {known.casefold(): known for known in names}
    return next((by_folded[near] for near in difflib.get_close_matches(name.casefold(), by_folded, 1, _NEAR)), None)


def differences(names: Iterable[str]) -> list[str]:
    """Returns the ``difference`` of every two neighbours among names that a reader may take for the same."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_shown(name), []).append(name)
    pairs = (pair for group in alike.values() for pair in itertools.pairwise(group))
    return [found for one, other in pairs if (found := difference(one, other))]


def case_aside(name: str) -> str:
    return composed(composed(name).casefold())


def _shown(name: str) -> str:
    """Visible form of a name, case aside."""
    plain = unicodedata.normalize("NFKC", case_aside(name)).casefold()
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").split())


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
