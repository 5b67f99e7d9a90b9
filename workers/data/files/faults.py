"""Rows of a list that cannot be taken, by what is wrong with them: counted, and the first ten of each named. Light."""

from pathlib import Path

from workers.errors import InvalidDataset
from workers.texts import LISTED_MAX, shortened


class Faults:
    """Rows that cannot be taken, by what is wrong with them.

    Args:
        unit: of a row's number in messages.
    """

    def __init__(self, unit: str = "line") -> None:
        self._unit = unit
        self._named: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, fault: str, row: int, value: object) -> None:
        """Count a row; ``fault`` is what rows are that have it, in the plural."""
        self._counts[fault] = self._counts.get(fault, 0) + 1
        named = self._named.setdefault(fault, [])
        if len(named) < LISTED_MAX:
            named.append(f"{shortened(repr(value), 80)} in {self._unit} {row}")

    def check(self, path: Path) -> None:
        """Raise InvalidDataset if there are any."""
        if not self._counts:
            return
        sentences = []
        for fault, count in self._counts.items():
            more = f" and {count - LISTED_MAX} more" if count > LISTED_MAX else ""
            sentences.append(f"{count:,} {fault}: {', '.join(self._named[fault])}{more}")
        raise InvalidDataset(f"{path}: {'; '.join(sentences)}")
