"""Numbers with units, for people. Light."""


def size(size_bytes: int) -> str:
    """Bytes with a binary unit: 1536 -> ``1.5 KiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
