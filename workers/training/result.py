"""result.json and the artifacts of a run that is trained to its end: weights, ONNX, metrics, events, configuration.

A finished run's folder appears under its final name in one rename, so a folder that has the name is complete, and a run
that was stopped or killed leaves none.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from workers.augmentation.apply import resize
from workers.config.task import TrainingTask
from workers.errors import Paused, Stopped
from workers.files import disk_full_is_disk_low, file_sha256, sync, sync_folder
from workers.methods.cache_values import record
from workers.run_files import ARTIFACTS, BUNDLE, EVENT_FILE, ONNX, WEIGHTS
from workers.training.artifacts.bundle import bundle_of
from workers.training.artifacts.event_file import write_event_file
from workers.training.artifacts.int8 import Int8Inputs, leave_int8
from workers.training.artifacts.model_folder import ModelFacts, leave_model
from workers.training.artifacts.onnx_export import Exported, Student, export_onnx
from workers.training.checkpoints.host_copy import to_host
from workers.training.evaluation.evaluate import name_of
from workers.training.evaluation.final_evaluation import FinalEvaluation
from workers.training.metrics.temperatures import document
from workers.training.run import RunState
from workers.training.run_handle import Signal
from workers.training.setting import Setting

_PARITY_PICTURES = 32
_VERSIONS_OF = ("torch", "torchvision", "zarr", "retort")


def leave(run_state: RunState, setting: Setting) -> dict[str, object]:
    """Write the artifacts; returns result.json.

    Raises:
        DiskLow: no room.
        ExportMismatch: see ``export_onnx``.
        Stopped, Paused: a client wants it, between two files.
    """
    task, final = run_state.task, run_state.final
    # Its last checkpoint has it.
    assert final is not None
    run_state.counters.attach()
    run_state.take_leaving_weights()
    result = _result_of(run_state, setting, final)
    temperature = final.temperature if task.training.calibrated_output else None
    student = Student(run_state.network, setting.preprocessing, temperature)
    with artifacts_folder(task.folder) as folder:
        _obey_signal_at_the_end(run_state)
        (folder / WEIGHTS).write_bytes(save(state_tensors(student.network)))
        _obey_signal_at_the_end(run_state)
        exported = export_onnx(student, folder / ONNX, _some_pictures(setting))
        _obey_signal_at_the_end(run_state)
        more = _leave_more(run_state, setting, result, folder=folder, exported=exported)
        result |= {"onnx_max_abs_difference": exported.difference, **more}
        _obey_signal_at_the_end(run_state)
        write_json(folder / "config.json", _config_of(run_state, setting, final))
        _write_measures(folder, run_state, final)
        write_json(folder / "result.json", result)
    return result


@contextmanager
def artifacts_folder(attempt: Path) -> Iterator[Path]:
    """A new folder that becomes ``attempt/artifacts``, durably and in one rename, where its block ends well.

    Raises:
        DiskLow: no room; as after any other error, nothing is left of it.
    """
    final, partial = attempt / ARTIFACTS, attempt / f"{ARTIFACTS}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with disk_full_is_disk_low(attempt, "a run's artifacts"):
        try:
            partial.mkdir(parents=True)
            yield partial
            for path in partial.iterdir():
                with path.open("rb+") as file:
                    sync(file)
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_folder(attempt)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _result_of(run_state: RunState, setting: Setting, final: FinalEvaluation) -> dict[str, object]:
    """result.json, without what is known only when its artifacts are made."""
    task, metrics, best_epoch = run_state.task, run_state.metrics, run_state.best_epoch
    samples = setting.feed.samples
    trained_s = sum(samples / (line["images_per_s"] or 1.0) for line in metrics)
    return {
        "student": task.run.student.name,
        "method": task.run.method.label,
        "seed": task.run.seed,
        "parameters": sum(p.numel() for p in run_state.network.parameters()),
        "epochs": len(metrics),
        "views_seen": task.views.seen(len(metrics), run_state.method.views),
        "stopped_early": len(metrics) < task.training.epochs,
        "selected": task.training.keep,
        "selected_epoch": best_epoch if task.training.keep == "best" and best_epoch is not None else len(metrics),
        "last": metrics[-1],
        "best": None if best_epoch is None else metrics[best_epoch - 1],
        "best_epoch": best_epoch,
        "best_by": None if best_epoch is None else task.training.selected_by,
        "weights": "ema" if task.training.leaves_average else "trained",
        "init": init if (init := task.run.student.init) == "random" else init.model_dump(mode="json"),
        "evaluation": final.documents,
        "calibration": final.calibration,
        "splits": {"train": samples, **{split: feed.samples for split, feed in setting.evaluations.items()}},
        "seconds": run_state.seconds,
        "images_per_s": len(metrics) * samples / max(trained_s, 1e-9),
        "caches": _cache_keys(task),
        "teacher": _figures_of_teacher(task),
        "environment": {**run_state.environment, **{name: version(name) for name in _VERSIONS_OF}},
    }


def _config_of(run_state: RunState, setting: Setting, final: FinalEvaluation) -> dict[str, object]:
    """config.json: all that was chosen for the run."""
    task = run_state.task
    config: dict[str, object] = {
        "run": task.run.model_dump(mode="json"),
        "method": task.run.method.expand().model_dump(mode="json"),
        "training": task.training.model_dump(mode="json"),
        "views": task.views.model_dump(mode="json"),
        "caches": _cache_keys(task),
        "datasets": {
            "train": task.train_fingerprint,
            "test": task.test_fingerprint,
            **({} if task.validation_fingerprint is None else {"validation": task.validation_fingerprint}),
        },
        "preprocessing": setting.preprocessing.model_dump(mode="json"),
        "class_names": list(setting.train.class_names),
        "temperature": final.temperature,
    }
    if run_state.cache_statistics:
        values = {each: tensor.cpu().numpy() for each, tensor in run_state.cache_statistics.items()}
        config["cache_statistics"] = record(values)
    return config


def _figures_of_teacher(task: TrainingTask) -> dict[str, float | None] | None:
    """Accuracy of the teacher, under the names of the student's; None where there is no teacher."""
    teacher = task.teacher_accuracy
    if teacher is None:
        return None
    return {**{name_of(split, "top1"): top1 for split, top1 in teacher.measured.items()}, "views_top1": teacher.views}


def _cache_keys(task: TrainingTask) -> dict[str, str | None]:
    """Keys of the caches that a run reads, by split; validation only where there is one."""
    return {
        "train": None if task.train_cache is None else task.train_cache.key,
        "test": None if task.test_cache is None else task.test_cache.key,
        **({} if task.validation_cache is None else {"validation": task.validation_cache.key}),
    }


def _some_pictures(setting: Setting) -> NDArray[np.uint8]:
    """Pictures [b, H, W, K] of the training split at the student's size, to compare an export on."""
    pictures = torch.from_numpy(setting.train.take(slice(_PARITY_PICTURES)).copy())
    if tuple(pictures.shape[1:3]) != setting.size:
        pictures = resize(pictures, *setting.size)
    return pictures.numpy()


def _write_measures(folder: Path, run_state: RunState, final: FinalEvaluation) -> None:
    """Write metrics and TensorBoard's events of every epoch, the evaluation, temperatures, and logits if asked for."""
    metrics, temperatures = run_state.metrics, None
    if run_state.method.needs_teacher:
        temperatures = document(run_state.temperatures)
        write_json(folder / "temperatures.json", temperatures, indent=None)
    lines = [json.dumps(line, allow_nan=False) for line in metrics]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    write_event_file(folder / EVENT_FILE, metrics, temperatures)
    write_json(folder / "evaluation.json", {"splits": final.whole, "calibration": final.calibration}, indent=None)
    if run_state.training.keep_logits:
        (folder / "logits.safetensors").write_bytes(save(dict(final.tensors)))


def _leave_more(
    run_state: RunState, setting: Setting, result: Mapping[str, object], *, folder: Path, exported: Exported
) -> dict[str, object]:
    """Write what is made of weights and ONNX; returns what result.json tells of it."""
    task = run_state.task
    told: dict[str, object] = {"int8": None}
    if task.export.int8 is not None:
        inputs = Int8Inputs(
            preprocessing=setting.preprocessing,
            splits={split: feed.dataset for split, feed in setting.evaluations.items()},
            threads=task.threads,
            heed=partial(_obey_signal_at_the_end, run_state),
        )
        told["int8"] = leave_int8(folder, task.export.int8, inputs)
    if task.export.model:
        facts = ModelFacts(
            student=task.run.student.name,
            class_names=setting.train.class_names,
            preprocessing=setting.preprocessing,
            origin=task.origin,
            result={**result, **told},
        )
        leave_model(folder, facts, exported.program)
    if task.origin is not None:
        bundle = bundle_of(task, run_state.environment, file_sha256(folder / WEIGHTS))
        write_json(folder / BUNDLE, bundle)
    return told


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


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers, on the CPU, contiguous and unshared (what safetensors asks for)."""
    state = network.state_dict()
    on_host = to_host(list(state.values()))
    return {name: tensor.contiguous().clone() for name, tensor in zip(state, on_host, strict=True)}


def write_json(path: Path, value: Mapping[str, object], indent: int | None = 2) -> None:
    """Write a JSON document; no NaN."""
    path.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n")
