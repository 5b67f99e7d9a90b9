"""Child that checks a file of weights; see ``workers.student_files.inspection``. Nothing else imports this file."""

import mmap
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.students.program import METADATA
from workers.students.safetensors_header import VARIANCE, Header, StoredTensor, read_header
from workers.texts import shortened

# By the format's names: as NumPy reads the bits; the sign's; those of the largest value that is taken, which is the
# largest finite one, and in float64 float32's: every student is trained in that.
_FLOATS = {
    "F64": ("<u8", 1 << 63, 0x47EF_FFFF_E000_0000),
    "F32": ("<u4", 1 << 31, 0x7F7F_FFFF),
    "F16": ("<u2", 1 << 15, 0x7BFF),
    "BF16": ("<u2", 1 << 15, 0x7F7F),
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
        check_values(Path(path), header)
    except InvalidStudentFile as error:
        return {"error": str(error)}
    return {
        "weights": {
            "tensors": len(header.tensors),
            "values": sum(tensor.values for tensor in header.tensors.values()),
            "dtypes": [*sorted({tensor.dtype for tensor in header.tensors.values()})],
        }
    }


def check_values(path: Path, header: Header) -> None:
    """Refuse a file with a value that is not finite in float32, or a variance below 0.

    Raises:
        InvalidStudentFile: naming the tensor.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        for name, tensor in header.tensors.items():
            mistake = _mistake(content, tensor, name.endswith(VARIANCE)) if tensor.dtype in _FLOATS else ""
            if mistake:
                raise InvalidStudentFile(
                    f"tensor {shortened(name, 80)!r} has {mistake}: no training goes on from these. "
                    "Save the weights of an earlier checkpoint"
                )


def _mistake(content: mmap.mmap, tensor: StoredTensor, is_variance: bool) -> str:
    """Words on the first values that are refused; empty if there are none."""
    dtype, sign, largest = _FLOATS[tensor.dtype]
    width = np.dtype(dtype).itemsize
    for first in range(0, tensor.values, _VALUES_AT_ONCE):
        count = min(_VALUES_AT_ONCE, tensor.values - first)
        bits = np.frombuffer(content, dtype, count, tensor.start + first * width)
        if ((bits & np.array(sign - 1, dtype)) > largest).any():
            return "values that are not finite" + (" in float32, which students are trained in" if width == 8 else "")
        if is_variance and (bits > sign).any():
            return "values below 0, and is a variance"
    return ""
