"""JSON text of the tables' JSON columns: finite numbers, and only characters that both databases keep."""

import json
import math

from workers.texts import storable


def dump_json(value: object) -> str:
    """JSON text; what JSON cannot spell (NaN, infinity) becomes null, so a diverged metric is not a crash.

    What nobody could be sent, or PostgreSQL not keep, is written out (``texts.storable``).
    """
    try:
        found = json.dumps(value, allow_nan=False)
    except ValueError:
        found = json.dumps(_finite(value), allow_nan=False)
    return json.dumps(storable(json.loads(found))) if _is_suspect(found) else found


def load_json(found: str | bytes) -> object:
    """A value from JSON text; rows of earlier versions may hold what can be sent to nobody, which is written out."""
    text = found.decode() if isinstance(found, bytes) else found
    value = json.loads(text)
    return storable(value) if _is_suspect(text) else value


def _is_suspect(found: str) -> bool:
    # ASCII, as ``json.dumps`` has written it: every surrogate, half of a pair or not, is spelt so.
    return "\\ud" in found or "\\u0000" in found


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
