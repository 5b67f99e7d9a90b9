"""Sizes of uploaded files: the limit of each kind, and what to do beyond it."""

from dataclasses import dataclass

from service.errors import TooLarge
from service.settings import Settings
from workers.onnx.checks.check import FILE_MAX_BYTES

BUFFER_BYTES = 1 << 20  # handed to a thread at a time
# Of a body beside its files: a buffer that was not parsed yet, and room for the piece that comes next (320 KiB from
# uvicorn at most), boundaries, part headers and text fields. So a file breaks its own limit before the body's.
UPLOAD_EXTRA_BYTES = 2 * BUFFER_BYTES


@dataclass(frozen=True)
class UploadLimit:
    """Most bytes of an upload's files together.

    Attributes:
        what: may have so many, in words.
        example: name of such a file.
        advice: to who uploads more, to follow the limit.
        twice_above_bytes: a larger upload is on the disk twice until its end; None if none is.
    """

    max_bytes: int
    what: str
    example: str
    advice: str
    twice_above_bytes: int | None = None

    def disk_bytes(self, size_bytes: int) -> int:
        """Bytes of the disk that an upload of so many bytes needs."""
        is_twice = self.twice_above_bytes is not None and size_bytes > self.twice_above_bytes
        return 2 * size_bytes if is_twice else size_bytes


def teacher_limit(settings: Settings) -> UploadLimit:
    """Limit of an ONNX file with its weights."""
    advice = (
        " (RETORT_TEACHER_MAX_BYTES): raise it, or convert its weights to float16, or quantise it "
        "(onnxruntime.quantization), or send its logits alone (POST /v1/caches)"
    )
    what = "a teacher with its weights"
    return UploadLimit(settings.teacher_max_bytes, what, "teacher.onnx", advice, twice_above_bytes=FILE_MAX_BYTES)


def logits_limit(settings: Settings) -> UploadLimit:
    """Limit of a file of logits."""
    advice = " (RETORT_LOGITS_MAX_BYTES): raise it, or send float16, top-k, or fewer views"
    return UploadLimit(settings.logits_max_bytes, "a file of logits", "logits.npz", advice)


def student_file_limit(settings: Settings) -> UploadLimit:
    """Limit of a file of a student."""
    advice = " (RETORT_STUDENT_FILE_MAX_BYTES): raise it, or send what holds the student alone, no optimizer's state"
    return UploadLimit(settings.student_file_max_bytes, "a student's file", "student.safetensors", advice)


def check_announced(size_bytes: int, limit: UploadLimit) -> None:
    """Raise TooLarge for an upload that announces more than its files may have, before any of it is read.

    Args:
        size_bytes: of the whole body; it may be as much larger than its files as ``UPLOAD_EXTRA_BYTES``.
    """
    if size_bytes > limit.max_bytes + UPLOAD_EXTRA_BYTES:
        raise TooLarge(f"the upload has {size_bytes} bytes, {limit.what} may have {limit.max_bytes}{limit.advice}")
