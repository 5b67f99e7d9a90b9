"""Messages of ONNX Runtime's errors: their cause, and one line of text for a person.

ONNX Runtime has no error classes for a full memory or a failing device; only the text shows it. Nothing of it is
imported here.
"""

import re

from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, WorkerError
from workers.onnx.checks.parsing import first_line

# Messages of its arena at its limit and on a full device, of CUDA, cuBLAS, cuDNN and the C++ library. There is no error
# class for it.
_NO_MEMORY = re.compile(
    r"allocate memory|smaller than requested bytes|out of memory|bad.alloc|MemoryError|ALLOC(ATION)?_FAILED", re.I
)
# A library of CUDA that fails, with the call: it stands behind some 400 characters of C++.
_CUDA_FAILURE = re.compile(r"\b(CUDA|CUDNN|CUBLAS\w*|CUFFT|CURAND) failure -?\d+: [^;]+")
_CUDA_CALL = re.compile(r"expr=([^;]+)")
# What begins its messages, and where in its sources they come from.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?")
_SOURCE = re.compile(r"/onnxruntime_src/\S+:\d+ ")
_QUALIFIERS = re.compile(r"^( const)?( \[with [^]]*\])? ")


def error_class(error: Exception) -> type[WorkerError]:
    """Error by its cause: the memory, the device or the file."""
    text = f"{type(error).__name__}: {error}"
    if _NO_MEMORY.search(text):
        return OutOfMemory
    return DeviceUnavailable if _CUDA_FAILURE.search(text) else InvalidTeacher


def message(error: Exception) -> str:
    """Message of ONNX Runtime in one line, without the places in its own sources."""
    failure, call = _CUDA_FAILURE.search(str(error)), _CUDA_CALL.search(str(error))
    if failure is None:
        return first_line(_without_source(_PREFIX.sub("", str(error))) or error)
    return failure[0].strip() + (f" in {call[1].strip()}" if call else "")


def _without_source(text: str) -> str:
    """Message without the first ``/onnxruntime_src/file.cc:12 type function(arguments) const``.

    That part can be 500 characters.
    """
    found = _SOURCE.search(text)
    if found is None:
        return text
    depth = 0
    for place in range(found.end(), len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0 and text[place] == ")" and text[place + 1 : place + 2] in ("", " "):  # no operator(), no lambda
            return text[: found.start()] + _QUALIFIERS.sub("", text[place + 1 :])
    return text
