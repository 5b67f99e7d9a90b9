"""Child that checks a file of weights; see ``workers.student_files.inspection``. Nothing else imports this file."""

import mmap
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.students.program import METADATA
from workers.students.safetensors_header import Header, StoredTensor, read_header
from workers.texts import shortened

# By the format's names: as NumPy reads it, and the bits of the exponent, all set in what is not finite.
_FLOATS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_VALUES_AT_ONCE = 1 << 20


def answer(path: str) -> JsonValue:
    """Answer of the child in ``inspect_weights``."""
    try:
        header = read_header(Path(path))
        if METADATA in header.metadata:
            raise InvalidStudentFile(
                f"the file's metadata has {METADATA!r}, which marks programs that this service has written: upload "
                "the archive of torch.export (.pt2) itself, or weights without it"
            )
        check_finite(Path(path), header)
    except InvalidStudentFile as error:
        return {"error": str(error)}
    return {
        "weights": {
            "tensors": len(header.tensors),
            "values": sum(tensor.values for tensor in header.tensors.values()),
            "dtypes": [*sorted({tensor.dtype for tensor in header.tensors.values()})],
        }
    }


def check_finite(path: Path, header: Header) -> None:
    """Refuse a file with a value that is not finite.

    Raises:
        InvalidStudentFile: naming the tensor.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        for name, tensor in header.tensors.items():
            if tensor.dtype in _FLOATS and not _is_finite(content, tensor):
                raise InvalidStudentFile(
                    f"tensor {shortened(name, 80)!r} has values that are not finite: no training goes on from these. "
                    "Save the weights of an earlier checkpoint"
                )


def _is_finite(content: mmap.mmap, tensor: StoredTensor) -> bool:
    dtype, exponent = _FLOATS[tensor.dtype]
    for first in range(0, tensor.values, _VALUES_AT_ONCE):
        count = min(_VALUES_AT_ONCE, tensor.values - first)
        offset = tensor.start + first * np.dtype(dtype).itemsize
        bits = np.frombuffer(content, dtype, count, offset) & np.array(exponent, dtype)
        if (bits == exponent).any():
            return False
    return True
