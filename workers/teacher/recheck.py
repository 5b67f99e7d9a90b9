"""Recheck: run a teacher again on random rows of a complete cache, and compare the logits."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store import CacheReader, SparseEncoding
from store.statistics import row_statistics
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherReading
from workers.data.preparation import prepared
from workers.errors import InvalidTeacher
from workers.teacher.cached_views import CachedViews
from workers.teacher.combined_cache import members_of, name_members
from workers.teacher.imports.imported_specs import is_imported
from workers.teacher.output_values import to_logits
from workers.teacher.teacher import Teacher

# Units in the last place of 1 by which the outputs of a sigmoid may differ between two providers.
_SIGMOID_UNITS = 4
# Statistics that rise with each logit.
_RISING = ("max", "min", "mean")


@dataclass(frozen=True)
class RecheckReport:
    """Differences of a teacher's outputs today from what the cache holds."""

    rows: int
    max_abs_difference: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the largest difference is allowed."""
        return self.max_abs_difference <= self.allowed


def recheck_rows(data_dir: Path, key: str, rows: int, seed: int = 0) -> RecheckReport:
    """Run the teacher again on random rows of a complete cache and compare.

    Args:
        data_dir: the service's folder, with ``caches``, ``datasets`` and ``teachers``.
        key: of the cache.
        rows: how many (view, sample) pairs to draw without repetition, at most all.

    Returns:
        The largest absolute difference of a logit, beside what the cache's dtype or encoding and
        another batch size or provider explain, and, of a sigmoid, less what the rounding of its output
        explains. Of a sparse cache, which has lost most logits, the
        largest of a statistic: those are of whole rows.

    Raises:
        store.CacheNotFound, InvalidTeacher, InvalidDataset: something it was made from is gone.
    """
    folders = Folders(data_dir=data_dir, data_root=data_dir)
    reader = CacheReader.from_key(folders.caches, key)
    spec = reader.spec
    if members_of(spec):
        raise InvalidTeacher(
            f"cache {key[:12]} is combined of the caches {name_members(spec)}, and no teacher gives its rows: check "
            "those instead"
        )
    if is_imported(spec):
        raise InvalidTeacher(
            f"the logits of cache {key[:12]} were imported, and no teacher here gives them: import them again, and the "
            "same ones have the same key"
        )
    path = folders.teachers / f"{spec.teacher_sha256}.onnx"
    if not path.is_file():
        raise InvalidTeacher(f"the teacher of cache {key[:12]} is gone: {path.name} is not there")
    dataset = prepared.open_prepared(folders.datasets, spec.dataset_fingerprint)
    teacher = Teacher(
        path,
        Preprocessing.model_validate(spec.preprocessing),
        spec.teacher_output,
        reading=TeacherReading.model_validate({"input_values": spec.teacher_inputs}),
        threads=os.cpu_count() or 1,
        device="auto",
        output_kind=spec.output_kind,
        columns=spec.columns,
        dataset=dataset,
        sessions=1,
    )
    total = spec.views * spec.samples
    chosen = np.random.Generator(np.random.Philox(key=seed)).choice(total, size=min(rows, total), replace=False)
    views = CachedViews.of(spec, dataset)
    worst = largest = half_step = 0.0
    for view in np.unique(chosen // spec.samples):
        index = np.sort(chosen[chosen // spec.samples == view] % spec.samples)
        fresh_BC = teacher.run(teacher.preprocess_views(*views.take(dataset, int(view), index)))
        largest = max(largest, float(np.abs(fresh_BC).max()))
        low_BC = high_BC = fresh_BC
        if spec.output_kind == "sigmoid":
            dtype = "float16" if teacher.graph.is_half else teacher.graph.output_dtype
            low_BC, high_BC = _sigmoid_bounds(fresh_BC, dtype)
        statistics = {name: values_N[index] for name, values_N in reader.statistics(int(view)).items()}
        if isinstance(spec.encoding, SparseEncoding):
            low, high = row_statistics(low_BC), row_statistics(high_BC)
            names = low if low_BC is high_BC else _RISING
            worst = max(worst, *(_outside(statistics[name], low[name], high[name]) for name in names))
        else:
            stored_BC = reader.gather(int(view), index).astype(np.float32)
            worst = max(worst, _outside(stored_BC, low_BC, high_BC))
        if spec.encoding == "uint8":
            half_step = max(half_step, float((statistics["max"] - statistics["min"]).max()) / 510)
    # Half a unit in the last place of float16 or half a step of uint8, and 1e-4 for another order of summation.
    unit = 2.0**-11 if spec.dtype == "float16" else 0.0
    return RecheckReport(len(chosen), worst, largest * (unit + 1e-4) + half_step + 1e-5)


def _outside(values: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> float:
    """Largest distance of a value from its bounds; 0 if all lie between them."""
    return max(0.0, float((low - values).max()), float((values - high).max()))


def _sigmoid_bounds(z_BC: NDArray[np.float32], dtype: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and largest logits [B, C] that the rounding of a sigmoid's output explains: far apart where p is near 0, 1.

    Args:
        z_BC: logits of the sigmoid.
        dtype: of its output.
    """
    p_BC = 1 / (1 + np.exp(-z_BC.astype(np.float64)))
    step = _SIGMOID_UNITS * float(np.finfo(dtype).eps)
    low_BC, high_BC = (to_logits((p_BC + way).astype(np.float32), "sigmoid") for way in (-step, step))
    return low_BC, high_BC
