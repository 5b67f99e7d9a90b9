"""Comparison of a teacher's outputs on CUDA with those on the CPU, for a few pictures, before it is used."""

import numpy as np
from numpy.typing import NDArray

from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import Dataset
from workers.errors import DeviceUnavailable
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.sessions.session import CPU_PROVIDER, CUDA_PROVIDER, VERSION
from workers.teacher.preflight.rows import BATCH_PIXELS, batch_rows, spread
from workers.teacher.preprocess import Images

COMPARED_ROWS = 8
# Largest difference of an output on CUDA and on the CPU, relative to the largest output, in half precision (True) and
# in float32. Other orders of addition made 2e-6 (ResNet-18) to 4e-4 (ResNet-152) in torchvision's networks with random
# weights, where rounding grows most, and rounding to TF32 made 2e-3 to 2e-1: a float32 difference beyond the first
# bound is a warning, for ONNX Runtime may have taken TF32 all the same. Nothing but a mistake explains what is
# beyond the second.
EXPLAINED = {False: 1e-3, True: 2e-2}
ALLOWED = {False: 1e-2, True: 5e-2}
# Outputs that are all zero differ by no share of the largest.
_LARGEST_MIN = float(np.finfo(np.float32).tiny)


def pictures_to_compare(dataset: Dataset | None, graph: TeacherGraph, preprocessing: Preprocessing) -> Images | None:
    """Uint8 [B, H, W, C], spread over the dataset, or noise as large as the graph or the preprocessing says.

    Returns:
        The pictures; None if nothing says how large they are.
    """
    if dataset is not None:
        return dataset.take(spread(dataset.samples, batch_rows(COMPARED_ROWS, preprocessing, dataset)))
    _, *declared = graph.picture(preprocessing.layout)
    given = preprocessing.size or (None, None)
    height, width = (size or fixed for size, fixed in zip(given, declared, strict=True))
    if height is None or width is None:
        return None
    rows = max(1, min(COMPARED_ROWS, BATCH_PIXELS // (height * width)))
    shape = (rows, height, width, preprocessing.channel_count)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def compare_with_cpu(
    here_BN: NDArray[np.float32], there_BN: NDArray[np.float32], *, is_half: bool, device: str
) -> tuple[str, str | None]:
    """Compare outputs [B, N] on CUDA with those on the CPU.

    Args:
        here_BN: on CUDA.
        there_BN: on the CPU.
        is_half: whether the graph computes in half precision.
        device: the GPU's name.

    Returns:
        The largest difference, as a sentence's part, and a warning if rounding does not explain it.

    Raises:
        DeviceUnavailable: the difference is larger than any that TF32 makes.
    """
    difference, largest = float(np.abs(here_BN - there_BN).max()), float(np.abs(there_BN).max())
    share = difference / max(largest, _LARGEST_MIN)
    found = f"{difference:.2g}, {share:.2g} of the largest"
    precision = "half precision" if is_half else "float32"
    # NaN is beyond every bound; the CPU's own, or an infinite one, is left to the preflight.
    if np.isfinite(largest) and not share <= ALLOWED[is_half]:
        raise DeviceUnavailable(
            f"the teacher's outputs for {len(here_BN)} pictures on {device} ({CUDA_PROVIDER}, ONNX Runtime "
            f"{VERSION}) differ from those of {CPU_PROVIDER} by {found}; {ALLOWED[is_half]:g} of it is "
            f"allowed in {precision}. The GPU or its libraries compute something else: mend them, or choose the "
            "CPU with RETORT_GPUS=0"
        )
    if share <= EXPLAINED[is_half]:
        return found, None
    tf32 = "" if is_half else ": ONNX Runtime may use TF32 where cuDNN has nothing else"
    return found, (
        f"the teacher's outputs on {device} differ from the CPU's by {found}, which is more than rounding "
        f"in {precision} explains{tf32}"
    )
