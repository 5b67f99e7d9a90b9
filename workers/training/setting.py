"""Set-up of a group of runs: device, data, caches, feeds, and each run's student as its seed or checkpoint has it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader, CacheSpec
from workers.config.task import TrainingTask
from workers.config.teacher import Preprocessing
from workers.config.views import is_mixed, output_size
from workers.config.weights_file import find_program
from workers.data.preparation.prepared import Dataset, SubsetDataset, open_prepared
from workers.devices import choose_device, new_stream
from workers.errors import CheckpointLost, InvalidJob, Paused, Stopped
from workers.events import Log, Split
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.gradient_estimate import gradient_warnings
from workers.precision import Precision, float32_as
from workers.students.build import build_student
from workers.teacher.cache_statistics import read_cache_statistics, some_rows
from workers.teacher.cached_views import CachedViews
from workers.training.cuda_graphs.cuda_graph import why_no_graph
from workers.training.evaluation.evaluation_feed import EvaluationFeed
from workers.training.initial_weights import take_initial_weights
from workers.training.optimization.distributed import Replicas
from workers.training.run import RunState
from workers.training.run_handle import RunHandle, Signal
from workers.training.training_feed import TrainingFeed


@dataclass(frozen=True)
class Setting:
    """Set-up that the runs of a group share.

    Attributes:
        precision: of float32 products while they train: in full, or ``tf32``.
        no_graph: why no step is recorded in a CUDA graph; None if that is tried.
        evaluations: of each split that is measured, ``validation`` and ``test``.
        cache_statistics: what some of the methods read of the whole cache, on the device.
        teacher_rows: statistics of some of the teacher's rows, [1, R] by name; empty if no run needs a teacher.
    """

    device: torch.device
    precision: Precision
    no_graph: str | None
    train: Dataset
    size: tuple[int, int]
    feed: TrainingFeed
    evaluations: Mapping[Split, EvaluationFeed]
    replicas: Replicas
    cache_statistics: Mapping[CacheStatistic, Tensor]
    teacher_rows: Mapping[str, NDArray[np.float32]]

    @property
    def preprocessing(self) -> Preprocessing:
        """From a picture to the student's input."""
        return self.feed.preprocessing


@contextmanager
def set_up(handles: Sequence[RunHandle]) -> Iterator[Setting]:
    """Choose the device, meet the other processes of the student, map data and caches; within, the device is set.

    Raises:
        InvalidJob: the runs do not share what a group has to share.
        DeviceUnavailable, PeerLost, store.StoreError.
        Stopped, Paused: all of the runs are to stop or to pause, while a whole cache is read.
    """
    for handle in handles:
        handle.task.folder.mkdir(parents=True, exist_ok=True)

    def emit_to_all(event: Log) -> None:
        for handle in handles:
            handle.emit(event)

    setting = _setting_of(handles, emit_to_all)
    # What is recorded in a CUDA graph may not run on the default stream.
    stream = new_stream(setting.device) if setting.device.type == "cuda" else None
    with closing(setting.feed), torch.cuda.stream(stream), float32_as("float32"):
        yield setting
    setting.replicas.close()


def _setting_of(handles: Sequence[RunHandle], emit: Callable[[Log], None]) -> Setting:
    tasks = [handle.task for handle in handles]
    _check_group(tasks)
    task = tasks[0]
    device, no_graph = _choose_device(task, emit)
    torch.set_num_threads(task.threads)
    # Of classes that nothing names, the teacher tells the number.
    outputs = 0 if task.train_cache is None else task.train_cache.classes
    train = open_prepared(task.folders.datasets, task.train_fingerprint).numbered(outputs)
    measured = {
        split: (open_prepared(task.folders.datasets, fingerprint).numbered(outputs), cache)
        for split, fingerprint, cache in _measured_splits(task)
    }
    size = output_size(task.views.augmentation, train.height, train.width)
    training, methods = task.training, [each.run.method.expand() for each in tasks]

    def reader(spec: CacheSpec | None) -> CacheReader | None:
        return None if spec is None else CacheReader(task.folders.caches, spec)

    rows = reader(task.train_cache) if any(method.needs_teacher for method in methods) else None
    wanted = {statistic for method in methods for statistic in method.cache_statistics}
    over_cache = {} if rows is None else read_cache_statistics(rows, wanted, lambda: _obey_signals(handles))
    trained_N = _trained_rows(train, [dataset for dataset, _ in measured.values()])
    if rows is not None and is_mixed(task.views.augmentation):
        _check_partners(CachedViews.of(rows.spec, train), trained_N)
    views_per_step = max(method.views for method in methods)
    replicas = Replicas(task.rank, training.actors, task.folder, device)
    return Setting(
        device=device,
        precision="tf32" if training.precision == "tf32" else "float32",
        no_graph=no_graph,
        train=train,
        size=size,
        feed=TrainingFeed(
            train,
            task.views,
            rows,
            training.batch_size,
            task.run.seed,
            device,
            views_per_step,
            replicas.share,
            task.threads,
            emit,
            trained_N,
            drop_last=training.drop_last,
        ),
        evaluations={
            split: EvaluationFeed(dataset, size, reader(cache), training.eval_batch_size, device, replicas.share)
            for split, (dataset, cache) in measured.items()
        },
        replicas=replicas,
        cache_statistics={each: torch.from_numpy(values).to(device) for each, values in over_cache.items()},
        teacher_rows={} if rows is None else some_rows(rows.statistics(0)),
    )


def _choose_device(task: TrainingTask, emit: Callable[[Log], None]) -> tuple[torch.device, str | None]:
    """The device, with this process's part of its memory, and why no step is recorded in a CUDA graph there."""
    if task.stage == "export":
        emit(Log(message="exported on the CPU: no GPU waits for it"))
        return torch.device("cpu"), "nothing is trained"
    device, why = choose_device(task.training.device, task.has_gpu_share)
    no_graph = why_no_graph(task.training.cuda_graph, device, task.training.actors)
    emit(Log(message=f"training on {device.type}: {why}"))
    if device.type == "cuda" and task.memory_fraction < 1.0:
        torch.cuda.set_per_process_memory_fraction(task.memory_fraction, device)
    return device, no_graph


def _obey_signals(handles: Sequence[RunHandle]) -> None:
    """Obey stop or pause where all runs are to; of several processes of one student, each stops alone.

    Raises:
        Stopped, Paused: a run that is to stop among others that are to pause is put down as they are.
    """
    signal = min(handle.signal for handle in handles)
    where = "while statistics over the whole cache were read"
    if signal is Signal.STOP:
        raise Stopped(f"the training was stopped {where}")
    if signal is Signal.PAUSE and handles[0].task.training.actors == 1:
        raise Paused(f"the training was paused {where}")


def _check_group(tasks: Sequence[TrainingTask]) -> None:
    """Refuse runs that lack what their options need, or cannot be trained side by side. Raises InvalidJob."""
    task = tasks[0]
    if (option := task.training.needs_validation) is not None and task.validation_fingerprint is None:
        raise InvalidJob(f"{option} needs a validation split, and the task has none: name one, or leave the option out")
    if len({_shared(each) for each in tasks}) > 1 or (len(tasks) > 1 and task.training.actors > 1):
        raise InvalidJob(
            "the runs of a group share everything but student and method, and one process: train them apart"
        )
    if task.views.fresh and any(each.run.method.expand().needs_teacher for each in tasks):
        raise InvalidJob(
            "views.fresh is true, and the teacher's logits are cached for views.count views alone: a run with a "
            "teacher trains on those"
        )


def _measured_splits(task: TrainingTask) -> Iterator[tuple[Split, str, CacheSpec | None]]:
    """Split, fingerprint and teacher's cache of everything that students are measured on."""
    if task.validation_fingerprint is not None:
        yield "validation", task.validation_fingerprint, task.validation_cache
    if task.test_fingerprint is not None:
        yield "test", task.test_fingerprint, task.test_cache


def _trained_rows(train: Dataset, measured: Sequence[Dataset]) -> NDArray[np.int64] | None:
    """Rows of the training split that are not held out: int64, ascending; None if none is."""
    for dataset in measured:
        if isinstance(dataset, SubsetDataset):
            if dataset.base.fingerprint != train.fingerprint:
                raise InvalidJob(
                    f"the {dataset.split} split was cut from data {dataset.base.fingerprint[:12]}, and the run trains "
                    f"on {train.fingerprint[:12]}: the dataset has changed; submit the job again"
                )
            return np.delete(np.arange(train.samples), dataset.rows_N)
    return None


def _check_partners(cached: CachedViews, trained_N: NDArray[np.int64] | None) -> None:
    """Refuse a cache whose mixed views are mixed with other rows than those that are trained on. Raises InvalidJob."""
    partners_P = cached.partners_P
    assert partners_P is not None
    if len(partners_P) != cached.samples if trained_N is None else not np.array_equal(partners_P, trained_N):
        raise InvalidJob(
            "the teacher's cache has views that are mixed with rows of another holdout than the run's: its logits are "
            "of other pictures; submit the job again"
        )


def _shared(task: TrainingTask) -> str:
    """Dump what the tasks of a group have in common: all but student, method, learning rate, folders and origin."""
    return task.model_dump_json(
        exclude={
            "run": {"index", "student", "method"},
            "training": {"optimizer": {"lr"}},
            "folder": True,
            "earlier": True,
            "told_epoch": True,
            "origin": True,
        }
    )


def new_run_state(place: int, handle: RunHandle, setting: Setting) -> RunState:
    """The student as the run's seed makes it, or as its last checkpoint has it.

    Raises:
        InvalidJob: the student cannot take these pictures.
        CheckpointLost: it was to be exported, and is not trained to its end.
    """
    task, train, student = handle.task, setting.train, handle.task.run.student
    program = find_program(student, task.folders)
    torch.manual_seed(task.run.seed)
    make = partial(
        build_student,
        student.name,
        in_channels=train.channels,
        image_side=min(setting.size),
        drop_path=task.training.drop_path,
        program=program,
    )
    network = make(train.classes)
    setting.replicas.normalise_whole_batches(network)
    network.to(setting.device)
    # Module.to takes both at once, but its annotations do not say so.
    network.to(memory_format=torch.channels_last)
    run_state = RunState(
        handle,
        place,
        network,
        (train.channels, *setting.size),
        setting.device,
        setting.replicas,
        is_replayed=setting.no_graph is None,
        cache_statistics=setting.cache_statistics,
    )
    _log_what_it_uses(run_state)
    if not run_state.resume():
        # A program keeps its classes.
        take_initial_weights(run_state, partial(make, train.classes + (program is None)))
    _warn_of_gradients(run_state, setting)
    if task.stage == "export" and not run_state.is_done:
        raise CheckpointLost(
            f"the last checkpoint of run {task.run.name!r} cannot be read: epoch {run_state.epoch} of "
            f"{task.training.epochs} is the last that can; it is trained again from there"
        )
    return run_state


def _log_what_it_uses(run_state: RunState) -> None:
    """Log the precision, where it is not the one that is expected, and what was read of the whole cache."""
    if run_state.device.type == "cuda" or run_state.training.precision not in ("auto", run_state.precision):
        run_state.emit(Log(message=f"trains in {run_state.precision}: {run_state.precision_reason}"))
    if run_state.cache_statistics:
        names = ", ".join(sorted(map(str, run_state.cache_statistics)))
        run_state.emit(Log(message=f"read over the whole cache, once: {names}"))


def _warn_of_gradients(run_state: RunState, setting: Setting) -> None:
    """Say of a method that begins with tens of times the gradient of cross-entropy, before its first epoch."""
    if run_state.epoch > 0:
        return
    epochs, classes = run_state.training.epochs, setting.train.classes
    for warning in gradient_warnings(run_state.method, setting.teacher_rows, classes, epochs=epochs):
        run_state.emit(Log(level="warning", message=warning))
