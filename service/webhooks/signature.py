"""Signatures of webhooks by the Standard Webhooks specification, and the secret that they are made with."""

import base64
import binascii
import hmac
import secrets
from datetime import datetime

from service.errors import InvalidSettings
from service.operations.private_files import create_secret
from service.settings import Settings
from workers.errors import InvalidText
from workers.text_files import read_text

PREFIX = "whsec_"
SECRET_BYTES = 32
# What the specification allows.
_BYTES_MIN, _BYTES_MAX = 24, 64


def headers_of(message_id: str, at: datetime, body: str, keys: list[str]) -> dict[str, str]:
    """The headers that let a receiver verify a message; a signature for each secret, of which one has to match.

    Args:
        at: of this attempt, by which receivers refuse what is old.
        keys: secrets, ``whsec_`` and base64 each.
    """
    timestamp = str(int(at.timestamp()))
    signed = f"{message_id}.{timestamp}.{body}".encode()
    signatures = [base64.b64encode(hmac.digest(_bytes_of(key), signed, "sha256")).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def load_secrets(settings: Settings) -> list[str]:
    """The secrets in the file, a line each; made in the data directory where no file is named and there is none.

    With several lines a message has a signature by each: receivers are moved from one to the next at their leisure.

    Raises:
        InvalidSettings: the file cannot be read, is empty, or holds something else.
    """
    path = settings.webhook_secret_path
    if settings.webhook_secret_file is None and not path.exists():
        create_secret(path, PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())
    advice = f"write {PREFIX} and {_BYTES_MIN} to {_BYTES_MAX} random bytes in base64 there, a line for each secret"
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, InvalidText) as error:
        raise InvalidSettings(f"the file with the secret of webhooks {path} cannot be read: {error}") from error
    if not lines:
        raise InvalidSettings(f"the file with the secret of webhooks {path} is empty: {advice}")
    for number, line in enumerate(lines, 1):
        if not line.startswith(PREFIX) or not _BYTES_MIN <= len(_bytes_of(line)) <= _BYTES_MAX:
            # Not the line: what is nearly a secret is one.
            raise InvalidSettings(f"line {number} of {path} is no secret of webhooks: {advice}")
    return lines


def _bytes_of(key: str) -> bytes:
    """The bytes of a secret; none of what is no base64."""
    try:
        return base64.b64decode(key.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""
