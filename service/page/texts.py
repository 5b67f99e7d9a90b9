"""Numbers as people read them: counts, sizes, durations, shares, digests."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def count(number: int | None) -> str:
    """Count with separators of thousands."""
    return "–" if number is None else f"{number:,}"


def size(size_bytes: float | None) -> str:
    """Size in the largest unit of which it has at least one (powers of 1,000)."""
    if size_bytes is None:
        return "–"
    power = 0
    while size_bytes >= 1000 and power < len(_UNITS) - 1:
        size_bytes /= 1000
        power += 1
    return f"{size_bytes:.0f} {_UNITS[power]}" if power == 0 else f"{size_bytes:.3g} {_UNITS[power]}"


def duration(seconds: float | None) -> str:
    """Duration in its two largest units."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def percent(share: float | None, digits: int = 1) -> str:
    """Share of one as percent."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def short_digest(digest: str) -> str:
    """First characters of a digest: enough to tell those of one service apart."""
    return digest[:12]
