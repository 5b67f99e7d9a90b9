"""Text that people write for us (jobs, keys), from its bytes: UTF-8, with or without a byte order mark. Light."""

from pathlib import Path

from workers.errors import InvalidText

_ADVICE = "save it as UTF-8 (PowerShell: `Get-Content OLD | Set-Content -Encoding utf8 NEW`)"


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        OSError: it cannot be read.
        InvalidText: as ``decode_text``.
    """
    return decode_text(path.read_bytes(), str(path))


def decode_text(content: bytes, what: str) -> str:
    """Returns the text that ``content`` spells in UTF-8; a byte order mark before it, as Windows writes, is none of it.

    Args:
        what: names it in messages.

    Raises:
        InvalidText: it is UTF-16, as older PowerShells' ``>`` writes, UTF-32, or no UTF-8.
    """
    for encoding, mark in (
        ("UTF-32", b"\xff\xfe\0\0"),
        ("UTF-32", b"\0\0\xfe\xff"),
        ("UTF-16", b"\xff\xfe"),
        ("UTF-16", b"\xfe\xff"),
    ):
        if content.startswith(mark):
            raise InvalidText(f"{what} is {encoding}, as PowerShell's `>` writes it, and has to be UTF-8: {_ADVICE}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidText(f"{what} is not UTF-8 ({error.reason} at byte {error.start}): {_ADVICE}") from error
    if "\0" in text:
        raise InvalidText(f"{what} holds NUL characters, as UTF-16 without a byte order mark does: {_ADVICE}")
    return text
