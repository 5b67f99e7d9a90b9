"""Upload of logits, read by a confined child into a plain file of float32 rows. Light: the API process loads this.

The child (``reading_child``) can open no file to write: it maps one that this process has opened. What it has left
there is not trusted: ids and values are checked again by whoever takes them (``import_cache``).

Legend: V views, N samples, K columns (classes, or the k of top-k).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.errors import InvalidLogits
from workers.onnx.sandboxing import sandbox
from workers.spec import Spec

# Of the child beside the mapped target and the file itself: pyarrow and a group of its rows.
_BASE_BYTES = 3 << 30
_NOT_OURS = "reading the file of logits gives no answer of ours: it is damaged or hostile"
PYARROW = "pyarrow"


class UploadedLogits(Spec):
    """Rows of an upload in a plain file: values [V, N, K], int32 indices [V, N, K] of top-k, and the ids.

    Attributes:
        path: of the file.
        ids_bytes: of the ids, each followed by a NUL; None where the upload has none.
        dtype: float16 where the upload's values had it; the file has float32.
    """

    path: Path
    views: int = Field(ge=1)
    samples: int = Field(ge=1)
    columns: int = Field(ge=1)
    is_top_k: bool
    ids_bytes: int | None
    dtype: Literal["float16", "float32"]

    @property
    def cells(self) -> int:
        """Number of values."""
        return self.views * self.samples * self.columns

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.cells * (8 if self.is_top_k else 4) + (self.ids_bytes or 0)

    def values_VNK(self) -> NDArray[np.float32]:
        """Values [V, N, K], mapped. Raises InvalidLogits if the file is not as long as it must be."""
        if self.path.stat().st_size != self.size_bytes:
            raise InvalidLogits("the rows that were read are not there any more: send the file again")
        return np.memmap(self.path, np.float32, "r", shape=(self.views, self.samples, self.columns))

    def indices_VNK(self) -> NDArray[np.int32] | None:
        """Numbers of the classes [V, N, K] of top-k, mapped; None of whole rows."""
        if not self.is_top_k:
            return None
        shape = (self.views, self.samples, self.columns)
        return np.memmap(self.path, np.int32, "r", offset=4 * self.cells, shape=shape)

    def ids(self) -> list[str] | None:
        """Ids of the samples; None where the upload has none. Raises InvalidLogits if they are not one for each."""
        if self.ids_bytes is None:
            return None
        with self.path.open("rb") as file:
            file.seek(self.size_bytes - self.ids_bytes)
            *ids, end = file.read(self.ids_bytes).split(b"\0")
        if len(ids) != self.samples or end:
            raise InvalidLogits(f"there are {len(ids)} sample ids for {self.samples} samples")
        return [each.decode(errors="surrogateescape") for each in ids]


class _ReadingAnswer(BaseModel):
    """Answer of the child: a description of the rows, or why there is none."""

    model_config = ConfigDict(extra="forbid")

    views: int = 0
    samples: int = 0
    columns: int = 0
    is_top_k: bool = False
    ids_bytes: int | None = None
    dtype: Literal["float16", "float32"] = "float32"
    error: str = ""
    missing: str = ""


def read_upload(
    path: Path,
    target: Path,
    *,
    bytes_max: int,
    timeout_s: float,
    check_room: Callable[[int], None] = lambda needed_bytes: None,
) -> UploadedLogits:
    """Read an npy, npz or Parquet file of logits in a confined child.

    Args:
        path: the upload; nobody else may be writing it.
        target: an empty file that receives the rows.
        bytes_max: of the rows as float32 (and int32), and the ids.
        timeout_s: wall-clock seconds.
        check_room: called with the bytes that are about to be written; raises when there is no room for them.

    Raises:
        InvalidLogits: the file is refused, or reading it took too long, too much memory, or crashed the child.
        ModuleNotFoundError: a Parquet file, and there is no pyarrow.
        WorkerError: the child could not start, for a reason that is not the file's.
    """
    path = path.resolve()
    size_bytes = path.stat().st_size
    check_room(min(bytes_max, 2 * size_bytes))
    with target.open("r+b") as file:
        # It has holes: only what is written takes room.
        file.truncate(bytes_max)
        outcome = sandbox.call(
            "workers.teacher.imports.reading_child:answer",
            {"path": str(path), "descriptor": file.fileno(), "bytes_max": bytes_max},
            readable=[path],
            memory_bytes=_BASE_BYTES + bytes_max + 4 * size_bytes,
            timeout_s=timeout_s,
            descriptors=[file.fileno()],
        )
        if outcome.breach is not None:
            raise InvalidLogits(f"reading the file of logits {outcome.breach}")
        found = _parsed(outcome.value, target)
        if found.size_bytes > bytes_max:
            raise InvalidLogits(_NOT_OURS)
        file.truncate(found.size_bytes)
    return found


def _parsed(value: object, target: Path) -> UploadedLogits:
    try:
        found = _ReadingAnswer.model_validate(value)
    except ValidationError:
        found = _ReadingAnswer(error=_NOT_OURS)
    if found.missing:
        raise ModuleNotFoundError("Parquet files need pyarrow", name=PYARROW)
    if found.error:
        raise InvalidLogits(found.error)
    rows = {name: getattr(found, name) for name in UploadedLogits.model_fields if name != "path"}
    try:
        return UploadedLogits(path=target, **rows)
    except ValidationError:
        pass
    raise InvalidLogits(_NOT_OURS)
