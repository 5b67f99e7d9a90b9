"""Train students on cached teacher logits; the loop is ``train_group``, read it top to bottom.

A group is one run or several that share everything but student and method: they train side by side on the same batches,
so that pictures are read and augmented once, and each ends with the bits that it would have had alone (on a CPU).
``train_run`` is the group of one.

It will not run a teacher, choose among epochs by the test split (the last epoch's weights are what
is kept; the best epoch is reported beside it and named so), or move a job's state. A run that is
killed anywhere resumes from its last checkpoint and ends with bit-identical weights on a CPU, because
nothing is drawn from a generator with a history: order, views and dropout are functions of
(seed, epoch, step).
"""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import MappingProxyType

import torch
from structlog.contextvars import bound_contextvars

from store import CacheReader, CacheSpec
from workers.augmentation.apply import resize
from workers.config.task import TrainingTask
from workers.config.teacher import Preprocessing
from workers.config.views import output_size
from workers.data.prepared import Dataset, open_prepared
from workers.devices import choose_device, new_stream
from workers.errors import CheckpointLost, InvalidJob, NotFinite, Paused, Stopped
from workers.events import Emit, Finished, Log, ShouldStop
from workers.logs import ids_of
from workers.methods.method import Method
from workers.precision import Precision, float32_as
from workers.students.build import build_student
from workers.training.artifacts import Student, write_artifacts
from workers.training.batches import BatchInputs, EvaluationFeed, TrainingFeed, student_preprocessing
from workers.training.cuda_graph import BatchLoader, Recorder, StepGraph, StepStreams, why_no_graph
from workers.training.distributed import Replicas
from workers.training.epoch_sums import Reading
from workers.training.evaluate import evaluate
from workers.training.run import RunHandle, RunState, Signal, best, learning_rate
from workers.training.step import check_every, explain_not_finite

_PARITY_PICTURES = 32
# A checkpoint that takes long is made so seldom that it costs a twentieth of the time at most.
_SAVING_SHARE = 0.05

# In the place of result.json where artifacts are left to another process.
TRAINED: Mapping[str, object] = MappingProxyType({"trained": True})

Ended = tuple[int, "dict[str, object] | Exception"]
"""Which run of the group, and result.json or why there is none."""


def _raise_unless_finite(line: Mapping[str, float | None], method: Method, epoch: int) -> None:
    """Refuse an epoch whose metrics are not numbers: the last update, or batch statistics, went astray.

    Raises:
        NotFinite: naming the first such metric.
    """
    for name, value in line.items():
        if value is not None and not math.isfinite(value):
            raise NotFinite(
                f"{name} of method {method.name!r} is {value} after epoch {epoch + 1}; the epoch is not kept. "
                "Lower the learning rate or the weights, or set training.max_gradient_norm"
            )


@dataclass(frozen=True)
class _Setting:
    """What the runs of a group share.

    Attributes:
        precision: of float32 products while they train: in full, or ``tf32``.
        no_graph: why no step is recorded in a CUDA graph; None if that is tried.
    """

    device: torch.device
    precision: Precision
    no_graph: str | None
    train: Dataset
    test: Dataset
    preprocessing: Preprocessing
    size: tuple[int, int]
    feed: TrainingFeed
    evaluation: EvaluationFeed
    replicas: Replicas


def _set_up(tasks: Sequence[TrainingTask], tell: Callable[[Log], None]) -> _Setting:
    """Choose the device, meet the other processes of the student, map data and caches.

    Raises:
        InvalidJob: the runs do not share what a group has to share.
    """
    task = tasks[0]
    if len({_shared(each) for each in tasks}) > 1 or (len(tasks) > 1 and task.training.actors > 1):
        raise InvalidJob(
            "the runs of a group share everything but student and method, and one process: train them apart"
        )
    if task.stage == "export":
        device = torch.device("cpu")
        no_graph: str | None = "nothing is trained"
        tell(Log(message="exported on the CPU: no GPU waits for it"))
    else:
        device, why = choose_device(task.training.device, task.has_gpu_share)
        no_graph = why_no_graph(task.training.cuda_graph, device, task.training.actors)
        tell(Log(message=f"training on {device.type}: {why}"))
    torch.set_num_threads(task.threads)
    if device.type == "cuda" and task.memory_fraction < 1.0:
        torch.cuda.set_per_process_memory_fraction(task.memory_fraction, device)
    train = open_prepared(task.folders.datasets, task.train_fingerprint)
    test = open_prepared(task.folders.datasets, task.test_fingerprint)
    size = output_size(task.views.augmentation, train.height, train.width)
    training, methods = task.training, [each.run.method.expand() for each in tasks]

    def reader(spec: CacheSpec | None) -> CacheReader | None:
        return None if spec is None else CacheReader(task.folders.caches, spec)

    rows = reader(task.train_cache) if any(method.needs_teacher for method in methods) else None
    views_per_step = max(method.views for method in methods)
    replicas = Replicas(task.rank, training.actors, task.folder, device)
    return _Setting(
        device=device,
        precision="tf32" if training.precision == "tf32" else "float32",
        no_graph=no_graph,
        train=train,
        test=test,
        preprocessing=student_preprocessing(train, size),
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
            tell,
        ),
        evaluation=EvaluationFeed(
            test, size, reader(task.test_cache), training.eval_batch_size, device, replicas.share
        ),
        replicas=replicas,
    )


def _shared(task: TrainingTask) -> str:
    """What all runs of a group have in common."""
    return task.model_dump_json(
        exclude={"run": {"index", "student", "method"}, "folder": True, "earlier": True, "told_epoch": True}
    )


def _new_run_state(place: int, handle: RunHandle, setting: _Setting) -> RunState:
    """The student as the run's seed makes it, or as its last checkpoint has it.

    Raises:
        InvalidJob: the student cannot take these pictures.
        CheckpointLost: it was to be exported, and is not trained to its end.
    """
    task, train = handle.task, setting.train
    torch.manual_seed(task.run.seed)
    name = task.run.student.name
    network = build_student(name, train.classes, in_channels=train.channels, image_side=min(setting.size))
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
    )
    if setting.device.type == "cuda" or run_state.training.precision not in ("auto", run_state.precision):
        run_state.emit(Log(message=f"trains in {run_state.precision}: {run_state.precision_reason}"))
    run_state.resume()
    if task.stage == "export" and not run_state.is_done:
        raise CheckpointLost(
            f"the last checkpoint of run {task.run.name!r} cannot be read: epoch {run_state.epoch} of "
            f"{task.training.epochs} is the last that can; it is trained again from there"
        )
    return run_state


class _Group:
    """The runs that are still training, what is recorded of their steps, and how the others have ended."""

    def __init__(self, handles: Sequence[RunHandle], setting: _Setting) -> None:
        self.run_states: list[RunState] = []
        self.steps: dict[int, StepGraph] = {}
        recorder = Recorder() if setting.no_graph is None else None
        self.loader = BatchLoader(setting.feed, setting.preprocessing, recorder)
        self.streams = StepStreams(len(handles), setting.device)
        self._ids = [ids_of(handle.task.folder) for handle in handles]
        self._ended: list[Ended] = []

    @contextlib.contextmanager
    def on_behalf_of(self, place: int) -> Iterator[None]:
        """What is raised inside ends this member's run, and what is logged is about it, and no one else's."""
        try:
            with bound_contextvars(**self._ids[place]):
                yield
        except Exception as error:
            _clear_frames(error)
            self.end(place, error)

    def add(self, run_state: RunState, step: StepGraph) -> None:
        self.run_states.append(run_state)
        self.steps[run_state.place] = step

    def end(self, place: int, how: dict[str, object] | Exception) -> None:
        """Note the end, and free the memory: the others, and other processes, may need it."""
        self.streams.close(place)
        self.steps.pop(place, None)
        for run_state in [run_state for run_state in self.run_states if run_state.place == place]:
            self.run_states.remove(run_state)
            run_state.release()
        torch.cuda.empty_cache()
        self._ended.append((place, how))

    def take_ended(self) -> list[Ended]:
        taken, self._ended = self._ended, []
        return taken


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that raised this held: activations of a batch that did not fit, say."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def train_run(task: TrainingTask, emit: Emit, should_stop: ShouldStop) -> dict[str, object]:
    """Train one run to its end, or from its last checkpoint to its end.

    Args:
        task: what to train, on which data, where to leave it.
        emit: told about steps (at most one in two seconds), epochs and the end.
        should_stop: asked before every batch.

    Returns:
        The content of result.json, or ``TRAINED`` where the order's stage is ``train``; of several processes of one
        student the first returns it, the others nothing.

    Raises:
        Stopped: ``should_stop`` returned true; the last checkpoint stays.
        NotFinite: the loss or its gradient is not a number.
        InvalidJob: the student cannot take these pictures, or the device is not there.
        PeerLost: another process of this student is gone.
        CheckpointLost: the stage is ``export``, and the run is not trained to its end.
        store.StoreError: the cache is missing, incomplete or damaged.
    """
    [(_, how)] = train_group([RunHandle(task, emit, should_stop)])
    if isinstance(how, Exception):
        raise how
    return how


def train_group(handles: Sequence[RunHandle]) -> Iterator[Ended]:
    """Train runs side by side on the same batches; each as ``train_run`` does.

    Yields:
        Each run's place and end, as soon as it has ended. A run that fails or is stopped leaves the others alone.

    Raises:
        What ``train_run`` raises, where it concerns them all: the device, the data, the caches.
    """
    for handle in handles:
        handle.task.folder.mkdir(parents=True, exist_ok=True)

    def emit_to_all(event: Log) -> None:
        for handle in handles:
            handle.emit(event)

    setting = _set_up([handle.task for handle in handles], emit_to_all)
    # What is recorded in a CUDA graph may not run on the default stream.
    stream = new_stream(setting.device) if setting.device.type == "cuda" else None
    with contextlib.closing(setting.feed), torch.cuda.stream(stream), float32_as("float32"):
        yield from _train_together(handles, setting)


def _train_together(handles: Sequence[RunHandle], setting: _Setting) -> Iterator[Ended]:
    """``train_group`` from its first checkpoint on."""
    feed, replicas = setting.feed, setting.replicas
    group = _Group(handles, setting)
    loader = group.loader

    # ---- resume
    for place, handle in enumerate(handles):
        with group.on_behalf_of(place):
            run_state = _new_run_state(place, handle, setting)
            group.add(run_state, StepGraph(run_state, setting.no_graph))
            if len(handles) > 1:
                handle.emit(Log(message=f"one of {len(handles)} runs trained in one process on the same batches"))
    yield from group.take_ended()
    saved, saving_s = time.monotonic(), 0.0

    while group.run_states:
        # ---- leave; at once, if the run was resumed from its last checkpoint
        for run_state in [run_state for run_state in group.run_states if run_state.is_done]:
            with group.on_behalf_of(run_state.place):
                if run_state.task.stage == "train":
                    group.end(run_state.place, dict(TRAINED))
                    continue
                result = _leave(run_state, setting) if replicas.is_first else {}
                run_state.emit(Finished(result=result))
                group.end(run_state.place, result)
        yield from group.take_ended()
        if not group.run_states:
            break

        # ---- step
        epoch = min(run_state.epoch for run_state in group.run_states)
        # Whoever was resumed from a later checkpoint waits until the others are there.
        behind = [run_state for run_state in group.run_states if run_state.epoch == epoch]
        for run_state in behind:
            run_state.network.train()
        first_step = min(run_state.sums.steps for run_state in behind)
        counted = time.monotonic()
        with float32_as(setting.precision):
            waiting = partial(_heed_waiting, group, behind, setting)
            batches = loader.batches(_until_unwanted(feed.inputs(epoch, first_step, waiting)))
            for step, (inputs, loaded) in enumerate(batches, start=first_step):
                # Whoever waits is asked, too: a run that is to stop does not wait for the others.
                group.streams.fork()
                for run_state in [*group.run_states]:
                    with group.on_behalf_of(run_state.place), group.streams.of(group.steps[run_state.place]):
                        _heed_signal(run_state, loader, setting)
                        if run_state in behind and run_state.sums.steps == step:
                            run_state.prepare_step(step, feed.steps)
                            group.steps[run_state.place].step(step, loaded)
                            run_state.count_step(len(inputs.rows))
                            _report_and_check(run_state, loader, setting)
                group.streams.join()
                counted = _share_time(behind, since=counted)
                if counted - saved > max(handles[0].task.checkpoint_s, saving_s / _SAVING_SHARE):
                    saved, saving_s = _save_all(group, behind, loader, setting)
                yield from group.take_ended()
                behind = [run_state for run_state in behind if run_state in group.run_states]
                if not behind:
                    break

        # Some may have ended while they waited for a batch.
        yield from group.take_ended()
        behind = [run_state for run_state in behind if run_state in group.run_states]
        # The steps were launched; now they are waited for.
        readings = {run_state.place: run_state.sums.read() for run_state in behind}
        _share_time(behind, since=counted)
        for run_state in behind:
            with group.on_behalf_of(run_state.place):
                # ---- measure
                started = time.monotonic()
                _check(run_state, readings[run_state.place], loader, setting)
                run_state.network.eval()
                line: dict[str, float | None] = {
                    "epoch": epoch + 1,
                    "lr": learning_rate(run_state.training, (epoch + 1) * feed.steps - 1, feed.steps),
                    "images_per_s": run_state.sums.rows / run_state.sums.seconds,
                    **readings[run_state.place].means,
                    **evaluate(run_state.forward, setting.evaluation, setting.preprocessing, replicas),
                    "seconds": run_state.sums.seconds + time.monotonic() - started,
                }
                _raise_unless_finite(line, run_state.method, epoch)

                # ---- save
                run_state.end_epoch(line)
                run_state.save()
                run_state.report_epoch()
        yield from group.take_ended()
    replicas.close()


class _Unwanted(Exception):
    """Nobody waits for the next batch any more."""


def _until_unwanted(inputs: Iterator[BatchInputs]) -> Iterator[BatchInputs]:
    with contextlib.suppress(_Unwanted):
        yield from inputs


def _heed_waiting(group: _Group, behind: Sequence[RunState], setting: _Setting) -> None:
    """While the next batch is waited for; what several processes of one student do together has to wait for it, too.

    Raises:
        _Unwanted: whoever was to train on that batch has ended.
    """
    for run_state in [*group.run_states]:
        with group.on_behalf_of(run_state.place):
            if run_state.training.actors == 1:
                _heed_signal(run_state, group.loader, setting)
            elif run_state.signal() is Signal.STOP:
                raise Stopped(f"run {run_state.task.run.name!r} was stopped while it waited for pictures")
    if not any(run_state in group.run_states for run_state in behind):
        raise _Unwanted


def _heed_signal(run_state: RunState, loader: BatchLoader, setting: _Setting) -> None:
    """Between two steps, when all is in the checkpoint that a pause leaves.

    Raises:
        Stopped, Paused.
        NotFinite: instead of a pause.
    """
    where = f"in epoch {run_state.epoch + 1} after {run_state.sums.steps} of {setting.feed.steps} steps"
    match setting.replicas.greatest(run_state.signal()):
        case Signal.STOP:
            raise Stopped(f"run {run_state.task.run.name!r} was stopped {where}")
        case Signal.PAUSE:
            _check(run_state, run_state.sums.read(), loader, setting)
            run_state.save()
            raise Paused(f"run {run_state.task.run.name!r} was paused {where}")


def _report_and_check(run_state: RunState, loader: BatchLoader, setting: _Setting) -> None:
    """After a step that was launched: an event now and then, and whether all steps so far were finite.

    Raises:
        NotFinite.
    """
    reading = run_state.report_step(setting.feed.steps)
    # Several processes of one student compute a bad step again together, so all look after the same one.
    if run_state.sums.steps % check_every(setting.device) == 0:
        if reading is None and bool(run_state.not_finite):
            reading = run_state.sums.read()
    elif run_state.training.actors > 1:
        reading = None
    if reading is not None:
        _check(run_state, reading, loader, setting)


def _check(run_state: RunState, reading: Reading, loader: BatchLoader, setting: _Setting) -> None:
    """Refuse to go on after a step whose loss or gradient was not finite; no update was made since.

    Raises:
        NotFinite: naming the step, and the sample where one is the cause.
    """
    if reading.bad_steps:
        step = run_state.sums.steps - reading.bad_steps
        loaded = loader.load_eagerly(setting.feed.inputs_again(step))
        raise explain_not_finite(run_state, step, loaded.batch, loaded.inputs)


def _share_time(run_states: Sequence[RunState], since: float) -> float:
    """Divide the time since then among those who have used it; returns what time it is."""
    now = time.monotonic()
    for run_state in run_states:
        run_state.sums.seconds += (now - since) / len(run_states)
    return now


def _save_all(
    group: _Group, run_states: Sequence[RunState], loader: BatchLoader, setting: _Setting
) -> tuple[float, float]:
    """Checkpoints in the middle of an epoch; returns when that was, and how long it took."""
    started = time.monotonic()
    for run_state in [run_state for run_state in run_states if run_state in group.run_states]:
        with group.on_behalf_of(run_state.place):
            reading = run_state.sums.read()
            if run_state.training.actors == 1:
                _check(run_state, reading, loader, setting)
            if not reading.bad_steps:
                run_state.save()
    ended = time.monotonic()
    return ended, ended - started


def _leave(run_state: RunState, setting: _Setting) -> dict[str, object]:
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
    return write_artifacts(
        task.folder,
        student,
        pictures.numpy(),
        config,
        metrics,
        result,
        partial(_heed_signal_at_the_end, run_state),
    )


def _heed_signal_at_the_end(run_state: RunState) -> None:
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
