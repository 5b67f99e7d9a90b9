"""Text of figures: names that strangers chose, drawn as they are and never as markup."""

import textwrap
from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager, ft2font

from workers.texts import printable, shortened

# Of what is installed, the first that has a character draws it; matplotlib brings the first.
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS")
_TITLE_CHARS = 240
_LABEL_CHARS = 60
# Of characters in an inch, in the size of titles; W is wider, i narrower.
_COLUMNS_PER_IN = 10.5


@cache
def families() -> tuple[str, ...]:
    """The fonts of figures that are installed here."""
    installed = set(font_manager.get_font_names())
    return tuple(name for name in _FAMILIES if name in installed)


def plain(text: str) -> str:
    r"""One line of characters that the fonts have: newlines, control characters and the rest written out (``\n``)."""
    # Markup is no concern: matplotlib takes no text of these figures as such, see ``style.rc``.
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return "".join(c if ord(c) in _drawable() else f"\\u{ord(c):04x}" for c in line)


def heading(name: str, caption: str, width: float) -> str:
    """The title of a figure of so many inches: a name, cut after 240 characters, and a sentence below it, in lines."""
    columns = int(width * _COLUMNS_PER_IN)
    return f"{_filled(shortened(plain(name), _TITLE_CHARS), columns)}\n{_filled(caption, columns)}"


def label(text: str, characters: int = _LABEL_CHARS, columns: int = _LABEL_CHARS) -> str:
    """A name beside a line or a bar: cut after so many characters, in lines of so many columns."""
    return _filled(shortened(plain(text), characters), columns)


def labels(names: Sequence[str], characters: int = _LABEL_CHARS, columns: int = _LABEL_CHARS) -> list[str]:
    """A label for each name; those that would be the same once they are cut are told apart by their number."""
    cut = [label(name, characters, columns) for name in names]
    return [f"{number}: {text}" if cut.count(text) > 1 else text for number, text in enumerate(cut)]


def _filled(text: str, columns: int) -> str:
    return textwrap.fill(text, columns, break_on_hyphens=False)


@cache
def _drawable() -> frozenset[int]:
    found: set[int] = set()
    for name in families():
        path = font_manager.findfont(font_manager.FontProperties(family=name), fallback_to_default=False)
        found.update(ft2font.FT2Font(path).get_charmap())
    return frozenset(found)
