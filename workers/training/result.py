"""result.json and the artifacts of a run that is trained to its end."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from workers.augmentation.apply import resize
from workers.errors import Paused, Stopped
from workers.files import file_sha256
from workers.run_files import BUNDLE, WEIGHTS
from workers.training.artifacts import Exported, Student, write_artifacts, write_json
from workers.training.bundle import bundle_of
from workers.training.model_folder import ModelFacts, leave_model
from workers.training.run import RunState, Signal, best
from workers.training.setting import Setting

_PARITY_PICTURES = 32


def leave(run_state: RunState, setting: Setting) -> dict[str, object]:
    """Write the artifacts; returns result.json."""
    task, metrics = run_state.task, run_state.metrics
    run_state.counters.attach()
    run, best_line = task.run, best(metrics)
    trained = sum(len(setting.train.labels_N) / (line["images_per_s"] or 1.0) for line in metrics)
    result: dict[str, object] = {
        "student": run.student.name,
        "method": run.method.label,
        "seed": run.seed,
        "parameters": sum(p.numel() for p in run_state.network.parameters()),
        "epochs": len(metrics),
        "selected": "last",
        "last": metrics[-1],
        "best": best_line,
        "best_epoch": best_line["epoch"],
        "seconds": run_state.seconds,
        "images_per_s": len(metrics) * len(setting.train.labels_N) / max(trained, 1e-9),
        "caches": {
            "train": None if task.train_cache is None else task.train_cache.key,
            "test": None if task.test_cache is None else task.test_cache.key,
        },
        "teacher": None
        if task.teacher_accuracy is None
        else {"top1": task.teacher_accuracy.test, "views_top1": task.teacher_accuracy.views},
        "environment": {
            **run_state.environment,
            **{name: version(name) for name in ("torch", "torchvision", "zarr", "retort")},
        },
    }
    config = {
        "run": run.model_dump(mode="json"),
        "method": run.method.expand().model_dump(mode="json"),
        "training": task.training.model_dump(mode="json"),
        "views": task.views.model_dump(mode="json"),
        "caches": result["caches"],
        "datasets": {"train": task.train_fingerprint, "test": task.test_fingerprint},
        "preprocessing": setting.preprocessing.model_dump(mode="json"),
        "class_names": list(setting.train.class_names),
    }
    pictures = torch.from_numpy(setting.test.take(slice(_PARITY_PICTURES)).copy())
    if tuple(pictures.shape[1:3]) != setting.size:
        pictures = resize(pictures, *setting.size)
    student = Student(run_state.network, setting.preprocessing)
    heed, more = partial(_obey_signal_at_the_end, run_state), partial(_leave_more, run_state, setting, result)
    return write_artifacts(
        task.folder, student, pictures.numpy(), config, metrics=metrics, result=result, heed=heed, more=more
    )


def _leave_more(
    run_state: RunState, setting: Setting, result: Mapping[str, object], folder: Path, exported: Exported
) -> dict[str, object]:
    """Write what is made of weights and ONNX; returns what result.json tells of it."""
    task = run_state.task
    if task.export.model:
        facts = ModelFacts(
            student=task.run.student.name,
            class_names=setting.train.class_names,
            preprocessing=setting.preprocessing,
            origin=task.origin,
            result=result,
        )
        leave_model(folder, facts, exported.program)
    if task.origin is not None:
        bundle = bundle_of(task, run_state.environment, file_sha256(folder / WEIGHTS))
        write_json(folder / BUNDLE, bundle)
    return {}


def _obey_signal_at_the_end(run_state: RunState) -> None:
    """Between two parts of what a run leaves, when all of its epochs are in its last checkpoint.

    Raises:
        Stopped, Paused.
    """
    where = f"after its last epoch, {run_state.epoch}, before its artifacts were complete"
    match run_state.signal():
        case Signal.STOP:
            raise Stopped(f"run {run_state.task.run.name!r} was stopped {where}")
        case Signal.PAUSE:
            raise Paused(f"run {run_state.task.run.name!r} was paused {where}")
