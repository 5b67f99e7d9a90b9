"""Small teachers and datasets of a few synthetic pictures, for tests of a teacher and of its preflight."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.support import onnx_models
from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import DecodedDataset
from workers.teacher.teacher import Teacher

PLAIN = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)


def pictures(count: int, channels: int = 3, side: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Uint8 noise [count, side, side, channels]."""
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labelled(images: NDArray[np.uint8], labels: NDArray[np.integer], names: tuple[str, ...]) -> DecodedDataset:
    """A training split in memory."""
    return DecodedDataset(
        images_NHWC=images,
        labels_N=labels.astype(np.int64),
        class_names=names,
        fingerprint="0" * 64,
        split="train",
        path=Path("."),
        channel_mean=(0.5,) * images.shape[3],
        channel_std=(0.25,) * images.shape[3],
    )


def teacher(built: onnx.ModelProto, tmp_path: Path, preprocessing: Preprocessing = PLAIN, **options: object) -> Teacher:
    """A teacher of this graph, on the CPU, in this process."""
    path = onnx_models.save(built, tmp_path / "teacher.onnx")
    return Teacher(path, preprocessing, threads=1, device="cpu", **options)
