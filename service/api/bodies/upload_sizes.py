"""Sizes of uploaded teachers: the limit, and what to do beyond it."""

from service.errors import TooLarge
from service.settings import TEACHER_MAX_BYTES

BUFFER_BYTES = 1 << 20  # handed to a thread at a time
# Of a body beside its files: a buffer that was not parsed yet, and room for the piece that comes next (320 KiB from
# uvicorn at most), boundaries, part headers and text fields. So a file breaks its own limit before the body's.
UPLOAD_EXTRA_BYTES = 2 * BUFFER_BYTES


def check_announced(size_bytes: int, limit_bytes: int) -> None:
    """Raise TooLarge for an upload that announces more than a teacher may have, before any of it is read.

    Args:
        size_bytes: of the whole body; it may be as much larger than its files as ``UPLOAD_EXTRA_BYTES``.
    """
    if size_bytes > limit_bytes + UPLOAD_EXTRA_BYTES:
        raise TooLarge(
            f"the upload has {size_bytes} bytes, a teacher with its weights may have "
            f"{limit_bytes}{next_step(size_bytes, limit_bytes)}"
        )


def next_step(size_bytes: int | None, limit_bytes: int) -> str:
    """Advice to who uploads more than the limit; the size is None where it is not known yet."""
    smaller = "convert its weights to float16, or quantise it (onnxruntime.quantization), and upload that"
    if size_bytes is not None and size_bytes > TEACHER_MAX_BYTES:
        return f", and no ONNX file with its weights has 2 GiB or more: {smaller}"
    if limit_bytes < TEACHER_MAX_BYTES:
        return f" (RETORT_TEACHER_MAX_BYTES, which may be set up to {TEACHER_MAX_BYTES}): raise it, or {smaller}"
    return f", as no ONNX file with its weights has 2 GiB or more: {smaller}"
