"""Reading of a torch.export archive (.pt2) by hand: its JSON and the raw bytes of its tensors, and no pickle in it.

The archive is a zip without compression: ``models/NAME.json`` has the graph, ``data/weights`` and ``data/constants``
have raw bytes with a JSON that says which tensor lies where. What is pickled in it (example inputs, objects) is not
opened. The schema is torch's ``torch._export.serde.schema``.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from workers.errors import InvalidStudentFile
from workers.student_files.inspection import NO_PICKLE
from workers.texts import shortened

# torch's numbers of dtypes: as NumPy reads them, and safetensors' names.
DTYPES = {
    1: ("u1", "U8"),
    3: ("<i2", "I16"),
    4: ("<i4", "I32"),
    5: ("<i8", "I64"),
    7: ("<f4", "F32"),
    12: ("?", "BOOL"),
}
# All that an archive may name, for messages and for dtypes that are computed in.
DTYPE_NAMES = {
    **{1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"},
    **{9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16"},
}
FLOAT32 = 7
STATE_NAME = re.compile(r"[\w-]{1,128}(\.[\w-]{1,128}){0,31}", re.ASCII)
_JSON_BYTES_MAX = 64 << 20
_MEMBERS_MAX = 50_000
_Extent = Annotated[int, Field(strict=True, ge=0, lt=1 << 40)]


class _Int(BaseModel):
    as_int: _Extent


class _TensorMeta(BaseModel):
    dtype: int
    sizes: Annotated[tuple[_Int, ...], Field(max_length=8)]
    strides: Annotated[tuple[_Int, ...], Field(max_length=8)]
    storage_offset: _Int
    requires_grad: bool


class _Payload(BaseModel):
    path_name: Annotated[str, Field(pattern=r"^\w{1,64}$")]
    is_param: bool
    use_pickle: bool
    tensor_meta: _TensorMeta | None


_PAYLOADS: TypeAdapter[dict[str, _Payload]] = TypeAdapter(dict[str, _Payload])


class ArchivedTensor(BaseModel):
    """Tensor of an archive.

    Attributes:
        dtype: safetensors' name.
        file: of the archive, that holds its bytes; two tensors of one file share memory.
        trained: whether it is a parameter with a gradient.
    """

    model_config = {"arbitrary_types_allowed": True}

    dtype: str
    values: NDArray[Any]
    file: str
    is_parameter: bool
    trained: bool


class Archive:
    """An open archive.

    Args:
        archive: of a file from a stranger.
        bytes_max: of all its tensors together.

    Raises:
        InvalidStudentFile: it is no such archive.
    """

    def __init__(self, archive: zipfile.ZipFile, bytes_max: int) -> None:
        self._archive, self._left = archive, bytes_max
        members = archive.infolist()
        if len(members) > _MEMBERS_MAX:
            raise InvalidStudentFile(f"the archive has {len(members)} members, at most {_MEMBERS_MAX} are read")
        self._members = {member.filename: member for member in members}
        models = [name for name in self._members if re.fullmatch(r"[^/]{1,255}/models/\w{1,128}\.json", name)]
        if len(models) != 1 or len(self._members) != len(members):
            raise InvalidStudentFile(
                f"the archive holds {len(models)} programs of torch.export, and one is taken: make it with "
                f"torch.export.save(program, 'student.pt2'). If it is of torch.save: {NO_PICKLE}"
            )
        self._top = models[0].partition("/")[0]
        self._model = models[0].rpartition("/")[2].removesuffix(".json")

    def program(self) -> Mapping[str, Any]:
        """The program's JSON."""
        found = self._json(f"{self._top}/models/{self._model}.json")
        if not isinstance(found, dict):
            raise InvalidStudentFile("the archive's program is no JSON object")
        return found

    def tensors(self, kind: str) -> dict[str, ArchivedTensor]:
        """Tensors by name; ``kind`` is ``weights`` or ``constants``.

        Raises:
            InvalidStudentFile: one is pickled, beyond its file, or of a dtype that is not taken.
        """
        folder = f"{self._top}/data/{kind}"
        config = self._json(f"{folder}/{self._model}_{kind}_config.json")
        payloads, mistake = None, ""
        try:
            payloads = _PAYLOADS.validate_python(config.get("config") if isinstance(config, dict) else None)
        except ValidationError as error:
            problem = error.errors()[0]
            mistake = f"{'/'.join(map(str, problem['loc']))} {problem['msg']}"
        if payloads is None:
            raise InvalidStudentFile(f"the archive's list of {kind} is wrong: {shortened(mistake)}")
        files = dict[str, bytes]()
        return {name: self._tensor(name, payload, folder, files) for name, payload in payloads.items()}

    def _tensor(self, name: str, payload: _Payload, folder: str, files: dict[str, bytes]) -> ArchivedTensor:
        shown, meta = shortened(name, 80), payload.tensor_meta
        if payload.use_pickle or meta is None:
            raise InvalidStudentFile(
                f"{shown!r} is pickled, and no pickle is opened here: export a program without custom objects and "
                "tensor subclasses"
            )
        if meta.dtype not in DTYPES:
            named = DTYPE_NAMES.get(meta.dtype, f"of torch's dtype {meta.dtype}")
            raise InvalidStudentFile(
                f"tensor {shown!r} is {named}: a student is trained in float32, and a job's `precision` computes in "
                "others. Call model.float() first, and export it again"
            )
        if payload.path_name not in files:
            files[payload.path_name] = self._read(f"{folder}/{payload.path_name}", self._left)
            self._left -= len(files[payload.path_name])
        dtype, stored = DTYPES[meta.dtype]
        raw = files[payload.path_name]
        flat = np.frombuffer(raw[: len(raw) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize], dtype)
        sizes: list[int]
        sizes, strides = [size.as_int for size in meta.sizes], [stride.as_int for stride in meta.strides]
        offset, count = meta.storage_offset.as_int, prod(sizes, start=1)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=False))
        if len(sizes) != len(strides) or (count and last >= flat.size) or count > flat.size:
            raise InvalidStudentFile(
                f"tensor {shown!r} of shape {sizes} lies beyond its {len(raw)} bytes: the archive is damaged"
            )
        width = flat.itemsize
        values = as_strided(flat[offset:], sizes, [stride * width for stride in strides]) if count else flat[:0]
        return ArchivedTensor(
            dtype=stored,
            values=np.ascontiguousarray(values).reshape(sizes),
            file=payload.path_name,
            is_parameter=payload.is_param,
            trained=payload.is_param and meta.requires_grad,
        )

    def _json(self, name: str) -> object:
        try:
            found: object = json.loads(self._read(name, _JSON_BYTES_MAX))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidStudentFile):
                raise
            raise InvalidStudentFile(f"{shortened(name, 120)!r} of the archive is no JSON") from error
        return found

    def _read(self, name: str, bytes_max: int) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise InvalidStudentFile(f"the archive has no {shortened(name, 120)!r}: save it with torch.export.save")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InvalidStudentFile(f"{shortened(name, 120)!r} is compressed or encrypted, which torch never does")
        if member.file_size > bytes_max:
            raise InvalidStudentFile(
                f"{shortened(name, 120)!r} has {member.file_size} bytes, and {bytes_max} are left of what is taken"
            )
        return self._archive.read(member)
