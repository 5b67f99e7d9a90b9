"""bundle.json: all that decides a run's weights, for ``retort reproduce`` to train it again and compare.

``job`` is the job as it would be posted for this run alone, beside the teacher's digest in place of an id of one
service. No path of this machine is in it: a dataset's counts from the data root.
"""

import platform
from importlib.metadata import version

import torch

from workers.config.task import TrainingTask
from workers.run_files import WEIGHTS

FORMAT = 1
_PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "torch", "torchvision", "zarr", "retort")


def bundle_of(task: TrainingTask, environment: dict[str, str], weights_sha256: str) -> dict[str, object]:
    """Content of bundle.json.

    Args:
        task: of a posted job, with its ``origin``.
        environment: what the run was trained on, as in result.json.
        weights_sha256: of student.safetensors.
    """
    assert task.origin is not None
    several = task.origin.teachers
    caches = {"train": task.train_cache, "validation": task.validation_cache, "test": task.test_cache}
    return {
        "format": FORMAT,
        "run": task.run.name,
        "job": task.origin.job.model_dump(mode="json"),
        "teacher": task.origin.teacher.model_dump(mode="json"),
        **({"teachers": [each.model_dump(mode="json") for each in several]} if several else {}),
        "datasets": {
            "train": task.train_fingerprint,
            "validation": task.validation_fingerprint,
            "test": task.test_fingerprint,
        },
        "caches": {split: None if spec is None else spec.key for split, spec in caches.items()},
        "seeds": {"run": task.run.seed, "views": task.views.seed},
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            **environment,
            # Which kernels torch takes on a CPU, and how a sum is cut into parts, change last bits.
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": task.threads,
        },
        "weights": {"file": WEIGHTS, "sha256": weights_sha256},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            # Of the two builds of ONNX Runtime one is installed.
            continue
    return found
