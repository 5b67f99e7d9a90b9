"""result.json and the artifacts of a run that is trained to its end."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from workers.augmentation.apply import resize
from workers.errors import Paused, Stopped
from workers.files import file_sha256
from workers.methods.cache_values import record
from workers.run_files import BUNDLE, WEIGHTS
from workers.training.artifacts import Exported, Student, Written, write_artifacts, write_json
from workers.training.bundle import bundle_of
from workers.training.evaluate import name_of
from workers.training.int8 import Int8Inputs, leave_int8
from workers.training.model_folder import ModelFacts, leave_model
from workers.training.run import RunState
from workers.training.run_handle import Signal
from workers.training.setting import Setting
from workers.training.temperatures import document

_PARITY_PICTURES = 32


def leave(run_state: RunState, setting: Setting) -> dict[str, object]:
    """Write the artifacts; returns result.json."""
    task, metrics, final = run_state.task, run_state.metrics, run_state.final
    # Its last checkpoint has it.
    assert final is not None
    run_state.counters.attach()
    best_epoch = run_state.best_epoch
    kept = best_epoch if task.training.keep == "best" and best_epoch is not None else len(metrics)
    run_state.take_best_weights()
    run, samples = task.run, setting.feed.samples
    trained = sum(samples / (line["images_per_s"] or 1.0) for line in metrics)
    result: dict[str, object] = {
        "student": run.student.name,
        "method": run.method.label,
        "seed": run.seed,
        "parameters": sum(p.numel() for p in run_state.network.parameters()),
        "epochs": len(metrics),
        "views_seen": task.views.seen(len(metrics), run_state.method.views),
        "stopped_early": len(metrics) < task.training.epochs,
        "selected": task.training.keep,
        "selected_epoch": kept,
        "last": metrics[-1],
        "best": None if best_epoch is None else metrics[best_epoch - 1],
        "best_epoch": best_epoch,
        "best_by": None if best_epoch is None else f"validation_{task.training.selection_metric}",
        "evaluation": final.documents,
        "calibration": final.calibration,
        "splits": {"train": samples, **{split: feed.samples for split, feed in setting.evaluations.items()}},
        "seconds": run_state.seconds,
        "images_per_s": len(metrics) * samples / max(trained, 1e-9),
        "caches": {
            "train": None if task.train_cache is None else task.train_cache.key,
            "test": None if task.test_cache is None else task.test_cache.key,
            **({} if task.validation_cache is None else {"validation": task.validation_cache.key}),
        },
        "teacher": None
        if task.teacher_accuracy is None
        else {
            **{name_of(split, "top1"): top1 for split, top1 in task.teacher_accuracy.measured.items()},
            "views_top1": task.teacher_accuracy.views,
        },
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
    pictures = torch.from_numpy(setting.train.take(slice(_PARITY_PICTURES)).copy())
    if tuple(pictures.shape[1:3]) != setting.size:
        pictures = resize(pictures, *setting.size)
    student = Student(
        run_state.network, setting.preprocessing, final.temperature if task.training.calibrated_output else None
    )
    written = Written(
        config=config,
        metrics=metrics,
        result=result,
        evaluation={"splits": final.whole, "calibration": final.calibration},
        temperatures=document(run_state.temperatures) if run_state.method.needs_teacher else None,
        tensors=final.tensors if task.training.keep_logits else None,
    )
    heed, more = partial(_obey_signal_at_the_end, run_state), partial(_leave_more, run_state, setting, result)
    return write_artifacts(task.folder, student, pictures.numpy(), written, heed=heed, more=more)


def _leave_more(
    run_state: RunState, setting: Setting, result: Mapping[str, object], folder: Path, exported: Exported
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
