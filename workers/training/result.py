"""result.json and the artifacts of a run that is trained to its end."""

from functools import partial
from importlib.metadata import version

import torch

from workers.augmentation.apply import resize
from workers.errors import Paused, Stopped
from workers.methods.cache_values import record
from workers.training.artifacts import Student, Written, write_artifacts
from workers.training.evaluate import name_of
from workers.training.run import RunState, Signal
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
    return write_artifacts(task.folder, student, pictures.numpy(), written, partial(_obey_signal_at_the_end, run_state))


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
