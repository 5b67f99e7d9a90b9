"""Child that makes the safe form of an uploaded program; see ``workers.student_files.programs``.

Nothing else imports this file.
"""

import json
import mmap
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from workers.errors import InvalidStudentFile
from workers.student_files.archive import Archive, ArchivedTensor
from workers.student_files.conversion import converted
from workers.students.program import CONSTANT, METADATA, Program
from workers.students.safetensors_header import HEADER_BYTES_MAX, METADATA_KEY, VARIANCE
from workers.texts import shortened

_ALIGNMENT = 8


def answer(path: str, descriptor: int, bytes_max: int) -> JsonValue:
    """Write the safe form to the memory of a descriptor; answers its size and what it holds, or why there is none."""
    try:
        program, tensors = read_archive(Path(path), bytes_max)
        content = safe_form(program, tensors)
        if len(content) > bytes_max:
            raise InvalidStudentFile(f"the program has more than the {bytes_max} bytes allowed")
    except InvalidStudentFile as error:
        return {"error": str(error)}
    with mmap.mmap(descriptor, len(content)) as memory:
        memory[:] = content
    return {
        "size": len(content),
        "shape": list(program.shape),
        "classes": program.classes,
        "weights": {
            "tensors": len(tensors),
            "values": sum(tensor.values.size for tensor in tensors.values()),
            "dtypes": [*sorted({tensor.dtype for tensor in tensors.values()})],
        },
    }


def read_archive(path: Path, bytes_max: int) -> tuple[Program, dict[str, ArchivedTensor]]:
    """Program of an archive, and the tensors that it reads, by their names in the safe form.

    Raises:
        InvalidStudentFile: naming what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            archive = Archive(opened, bytes_max)
            program = converted(archive.program())
            weights, constants = archive.tensors("weights"), archive.tensors("constants")
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, InvalidStudentFile):
            raise
        raise InvalidStudentFile(
            f"the archive cannot be read ({type(error).__name__}): make it with torch.export.save(program, "
            "'student.pt2')"
        ) from error
    state = [*program.parameters.values(), *program.buffers.values()]
    tensors = {name: _found(weights, name) for name in state}
    tensors |= {
        CONSTANT + name: _found(weights | constants, name) for name in dict.fromkeys(program.constants.values())
    }
    _check(program, tensors, state)
    return program, tensors


def _found(there: Mapping[str, ArchivedTensor], name: str) -> ArchivedTensor:
    if name not in there:
        raise InvalidStudentFile(f"the archive has no tensor {shortened(name, 80)!r}, which its program reads")
    return there[name]


def _check(program: Program, tensors: Mapping[str, ArchivedTensor], state: list[str]) -> None:
    """Refuse tensors that are not trained as a client would think."""
    for name in program.parameters.values():
        tensor = tensors[name]
        if tensor.dtype != "F32" or not tensor.trained:
            what = "is frozen (requires_grad is false)" if tensor.dtype == "F32" else f"is {tensor.dtype}"
            raise InvalidStudentFile(f"parameter {name!r} {what}: a student trains all of its weights, in float32")
    files = Counter(tensors[name].file for name in state)
    for name in state:
        if files[tensors[name].file] > 1:
            raise InvalidStudentFile(f"tensor {name!r} shares its memory with another: give each tensor its own")
    if len(state) != len(set(state)):
        raise InvalidStudentFile("the program names a tensor of its state twice")
    for name, tensor in tensors.items():
        if tensor.values.dtype.kind == "f" and not np.isfinite(tensor.values).all():
            raise InvalidStudentFile(f"tensor {name!r} has values that are not finite: no training goes on from these")
        if name.endswith(VARIANCE) and (tensor.values < 0).any():
            raise InvalidStudentFile(f"tensor {name!r} has values below 0, and is a variance: export the network anew")


def safe_form(program: Program, tensors: Mapping[str, ArchivedTensor]) -> bytes:
    """Content of a safetensors file of these tensors, with the program beside them; the same for the same program.

    Raises:
        InvalidStudentFile: its header would have more bytes than are read.
    """
    header: dict[str, object] = {METADATA_KEY: {METADATA: program.model_dump_json()}}
    at = 0
    pieces = []
    # Widest first, so that all begin where their dtype may.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].values.itemsize, item[0])):
        raw = tensor.values.tobytes()
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.values.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        pieces.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > HEADER_BYTES_MAX:
        raise InvalidStudentFile(
            f"the program's graph and names have {len(text)} bytes, at most {HEADER_BYTES_MAX} are taken"
        )
    return b"".join((struct.pack("<Q", len(text)), text, *pieces))
