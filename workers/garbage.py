"""Pauses of Python's collection of cyclic garbage, while objects are made that stay. Light."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collection of cyclic garbage in a block that imports much: nothing of it is garbage.

    The collector looks through all modules again and again while their number grows: a fifth of the time that torch and
    the export to ONNX take to begin. In all threads of this process; what has become garbage meanwhile is found later.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
