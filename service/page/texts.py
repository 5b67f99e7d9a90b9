"""Numbers as people read them: counts, durations, shares, digests; sizes are of ``service.units``."""

_NOTHING = "–"


def count(number: int | None) -> str:
    """Count with separators of thousands."""
    return _NOTHING if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds is None:
        return _NOTHING
    whole = max(0, round(seconds))
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{whole} s"


def percent(share: float | None, digits: int = 1) -> str:
    """Fraction as a percentage."""
    return _NOTHING if share is None else f"{100 * share:.{digits}f} %"


def short_digest(digest: str) -> str:
    """First characters of a digest: enough to tell those of one service apart."""
    return digest[:12]
