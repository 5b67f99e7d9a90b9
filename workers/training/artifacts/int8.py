"""int8 form of a trained student: quantised on validation pictures, measured beside the float one, kept if good enough.

Runs on the CPU, where such a file is for. Shapes: N rows of a split, B of a batch, H x W pixels, K channels, C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from workers.augmentation.apply import resize, to_input
from workers.config.export import Int8
from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import Dataset
from workers.errors import InvalidTeacher, OutOfMemory
from workers.onnx.quantization import QuantizationFailed, quantize
from workers.run_files import INT8, ONNX
from workers.teacher.teacher import Teacher
from workers.unlabelled import count_labelled, labelled_rows

# Activations of so many pictures are in memory at once, of every tensor of the graph while it is calibrated.
_ROWS, _PIXELS = 64, 64 * 64
# Rows of a split that the two files are compared on, at most: enough to see a drop of half a point.
_MEASURED_ROWS = 10_000


@dataclass(frozen=True)
class Int8Inputs:
    """Inputs that a student is quantised and measured with.

    Attributes:
        preprocessing: of the student, with its input size.
        splits: ``validation``, which calibrates, and ``test`` where it is measured.
        threads: of one run on the CPU.
        heed: called between batches; what it raises ends this.
    """

    preprocessing: Preprocessing
    splits: Mapping[str, Dataset]
    threads: int
    heed: Callable[[], None]


def leave_int8(folder: Path, options: Int8, inputs: Int8Inputs) -> dict[str, object]:
    """Quantise ``folder/student.onnx``; leave ``student.int8.onnx`` beside it unless it loses too much.

    The float and the int8 file run side by side on pictures of each split, those with labels if it has any, evenly
    spread where there are more than 10,000, by ONNX Runtime on this CPU. A run whose int8 student is refused does not
    fail.

    Returns:
        The part of result.json: ``kept``; ``refused``, why it is not, or None; ``max_drop``, ``calibration_pictures``;
        ``bytes`` of the int8 file and ``bytes_float``; and for each split ``top1``, ``top1_float``, ``agreement``
        (share of rows on which both choose the same class) and ``rows``; top-1 where the split has labels. Without
        ``bytes`` and splits if ONNX Runtime cannot quantise the student.

    Raises:
        What ``heed`` raises; DiskLow, OSError.
    """
    source, path = folder / ONNX, folder / INT8
    validation = inputs.splits["validation"]
    rows_N = calibration_rows(validation.samples, options.calibration_pictures)
    told: dict[str, object] = {
        "kept": False,
        "refused": None,
        "max_drop": options.max_drop,
        "calibration_pictures": len(rows_N),
        "bytes_float": source.stat().st_size,
    }
    batches = (_input(images, inputs.preprocessing) for images in _pictures(validation, rows_N, inputs))
    try:
        quantize(source, path, batches, threads=inputs.threads, reduce_range=options.reduce_range)
        measured = {split: _compare(folder, dataset, inputs) for split, dataset in inputs.splits.items()}
    except (QuantizationFailed, InvalidTeacher, OutOfMemory, MemoryError) as error:
        path.unlink(missing_ok=True)
        return {**told, "refused": str(error) or type(error).__name__}
    told |= {"bytes": path.stat().st_size, **measured}
    drop = measured["validation"]["top1_float"] - measured["validation"]["top1"]
    # Two shares of the same rows: their difference is rounded, and a drop of exactly max_drop is allowed.
    if drop > options.max_drop + 1e-9:
        path.unlink()
        return {
            **told,
            "refused": f"top-1 on the validation split falls by {drop:.4f}, from "
            f"{measured['validation']['top1_float']:.4f} to {measured['validation']['top1']:.4f}; max_drop is "
            f"{options.max_drop}: raise it, or use the float file",
        }
    return {**told, "kept": True}


def calibration_rows(samples: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` of the rows of a split, evenly spread: of every class where a split is sorted by class."""
    count = min(samples, wanted)
    return np.arange(count, dtype=np.int64) * samples // count


def _compare(folder: Path, dataset: Dataset, inputs: Int8Inputs) -> dict[str, float]:
    """Accuracy of both files on the labelled rows of a split, or many of them, and how often they agree.

    Where no row has a label, they are any rows, and there is no accuracy.
    """
    float_, int8 = (
        Teacher(folder / name, inputs.preprocessing, "logits", threads=inputs.threads, device="cpu")
        for name in (ONNX, INT8)
    )
    right = right_float = agreeing = seen = 0
    # Evenly spread rows may all be without a label where few have one.
    candidates_N = labelled_rows(dataset.labels_N)
    if len(candidates_N) == 0:
        candidates_N = np.arange(dataset.samples)
    rows_N = candidates_N[calibration_rows(len(candidates_N), _MEASURED_ROWS)]
    labels_N = np.asarray(dataset.labels_N)[rows_N]
    for images in _pictures(dataset, rows_N, inputs):
        labels_B = labels_N[seen : seen + len(images)]
        input_ = float_.preprocess(images)
        chosen_B, chosen_float_B = int8.run(input_).argmax(1), float_.run(input_).argmax(1)
        right += int((chosen_B == labels_B).sum())
        right_float += int((chosen_float_B == labels_B).sum())
        agreeing += int((chosen_B == chosen_float_B).sum())
        seen += len(images)
    labelled = count_labelled(labels_N)
    top1 = {"top1": right / labelled, "top1_float": right_float / labelled} if labelled else {}
    return {**top1, "agreement": agreeing / seen, "rows": seen}


def _pictures(dataset: Dataset, rows_N: NDArray[np.int64], inputs: Int8Inputs) -> Iterator[NDArray[np.uint8]]:
    """Pictures uint8 [B, H, W, K] of these rows at the student's size, batch after batch."""
    height, width = size = inputs.preprocessing.size or (dataset.height, dataset.width)
    rows = max(1, min(_ROWS, _ROWS * _PIXELS // (height * width)))
    for start in range(0, len(rows_N), rows):
        inputs.heed()
        images = torch.from_numpy(np.ascontiguousarray(dataset.take(rows_N[start : start + rows])))
        yield (images if tuple(images.shape[1:3]) == size else resize(images, *size)).numpy()


def _input(images_BHWK: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The student's input [B, K, H, W] for pictures."""
    return to_input(torch.from_numpy(images_BHWK), preprocessing, channels_last=False).numpy()
