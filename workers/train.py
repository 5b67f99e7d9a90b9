"""Train one student on cached teacher logits; the loop is ``train_run``, read it top to bottom.

It will not run a teacher, choose among epochs by the test split (the last epoch's weights are what
is kept; the best epoch is reported beside it and named so), or move a job's state. A run that is
killed anywhere resumes from its last epoch and ends with bit-identical weights on a CPU, because
nothing is drawn from a generator with a history: order, views and dropout seeds are functions of
(seed, epoch).
"""

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from torch import Tensor, nn

from store import CacheReader, CacheSpec
from workers import views
from workers.artifacts import Student, load_checkpoint, save_checkpoint, write_artifacts
from workers.composition import Method
from workers.config import AdamW, CosineSchedule, Preprocessing, Sgd, Training, TrainingOrder
from workers.datasets import Dataset, open_prepared
from workers.errors import InvalidJob, NotFinite, Stopped
from workers.evaluate import evaluate
from workers.events import Emit, Epoch, Finished, Log, ShouldStop, Step
from workers.feed import (
    Batch,
    EvaluationFeed,
    TrainingFeed,
    student_preprocessing,
    to_input,
)
from workers.objective import Objective, View, objective
from workers.students.build import build_student

# A person watches; an event is a row in the database.
_STEP_EVENT_SECONDS = 2.0
_PARITY_PICTURES = 32


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device to train on, and why.

    Raises:
        InvalidJob: ``cuda`` is asked for and there is none.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "the job asks for the CPU"
    if torch.cuda.is_available():
        return torch.device("cuda"), f"CUDA device {torch.cuda.get_device_name()}"
    if wanted == "cuda":
        raise InvalidJob("training.device is 'cuda', but torch sees no CUDA device here: use 'auto' or 'cpu'")
    return torch.device("cpu"), "torch sees no CUDA device"


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one update (``step`` from 0), after warm-up and schedule."""
    warmup_steps = training.warmup_epochs * steps_per_epoch
    total_steps = training.epochs * steps_per_epoch
    schedule = training.schedule
    if step < warmup_steps:
        factor = min((step + 1) / warmup_steps, 1.0)
    elif isinstance(schedule, CosineSchedule):
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        factor = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    else:
        # Rounded down to whole epochs, as the papers' 150 / 180 / 210 of 240.
        epoch = step // steps_per_epoch
        passed = sum(epoch >= math.floor(m * training.epochs + 1e-9) for m in schedule.milestones)
        factor = schedule.gamma**passed
    return training.optimizer.lr * factor


def _optimizer(training: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    chosen = training.optimizer
    if isinstance(chosen, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=chosen.lr,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
            nesterov=chosen.nesterov,
        )
    assert isinstance(chosen, AdamW)
    return torch.optim.AdamW(parameters, lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay)


@dataclass
class _EpochSums:
    """What an epoch adds up, on the device; it is read once, at the epoch's end."""

    device: torch.device
    rows: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, outcome: Objective, correct: Tensor, rows: int) -> None:
        self.rows += rows
        self._add("train_loss", outcome.total.detach() * rows)
        self._add("train_accuracy", correct)
        for name, value in outcome.terms.items():
            self._add(f"train_{name}", value * rows)
        for side, tau_B in (
            ("student", outcome.student_temperature_B),
            ("teacher", outcome.teacher_temperature_B),
        ):
            if tau_B is not None:
                tau_B = tau_B.double()
                self._add(f"{side}_temperature_mean", tau_B.sum())
                self._add(f"{side}_temperature_square", tau_B.square().sum())

    def _add(self, name: str, value: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        self.sums[name] += value

    def means(self) -> dict[str, float | None]:
        means = {name: float(value) / max(self.rows, 1) for name, value in self.sums.items()}
        result: dict[str, float | None] = dict(means)
        for side in ("student", "teacher"):
            mean = means.get(f"{side}_temperature_mean")
            square = result.pop(f"{side}_temperature_square", None)
            result[f"{side}_temperature_mean"] = mean
            result[f"{side}_temperature_std"] = (
                None if mean is None or square is None else math.sqrt(max(square - mean**2, 0.0))
            )
        return result


def _checked_gradient(parameters: Sequence[nn.Parameter], loss: Tensor, method: Method, clip: float | None) -> None:
    """Differentiate; clip the gradient's norm if asked; a finite loss can still have a gradient that is not.

    Raises:
        NotFinite: naming the method.
    """
    torch.autograd.backward(loss)
    if clip is None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = nn.utils.clip_grad_norm_(parameters, clip)
    if not bool(torch.isfinite(norm)):
        found = f"norm {float(norm):g}, loss {float(loss.detach()):g}"
        raise NotFinite(
            f"the gradient of method {method.name!r} is not finite ({found}); "
            "lower the learning rate or the weights, or set training.max_gradient_norm"
        )


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


def _batch_objective(
    method: Method,
    logits: Sequence[Tensor],
    batch: Batch,
    learned: Mapping[str, Tensor],
    training: Training,
    epoch: int,
) -> Objective:
    """The loss of a batch whose views have these student logits, [B, C] each.

    Raises:
        NotFinite: with the sample's place in the training split, where one sample is the cause.
    """
    both = [
        View(logits_BC, seen.teacher_logits, seen.teacher_statistics)
        for logits_BC, seen in zip(logits, batch.views, strict=True)
    ]
    try:
        return objective(
            method,
            both[0].student_logits_BC,
            batch.labels,
            epoch=epoch + 1,
            epochs=training.epochs,
            teacher_logits_BC=both[0].teacher_logits_BC,
            teacher_statistics=both[0].teacher_statistics,
            second=both[1] if len(both) > 1 else None,
            learned=learned,
            label_smoothing=training.label_smoothing,
        )
    except NotFinite as error:
        if error.sample is None:
            raise
        row = int(batch.rows[error.sample])
        raise NotFinite(f"{error} (sample {row} of the training split)", error.sample) from error


def _autocast(training: Training, device: torch.device, learning: bool) -> torch.autocast:
    """bfloat16 while it learns, if that was chosen; what is evaluated is the float32 network that is kept."""
    wanted = training.precision
    enabled = learning and (wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _best(metrics: Iterable[Mapping[str, float | None]]) -> Mapping[str, float | None]:
    """The epoch with the highest test accuracy, the earliest of equals."""
    return max(metrics, key=lambda line: (line["top1"] or 0.0, -(line["epoch"] or 0.0)))


@dataclass(frozen=True)
class _Setting:
    """What a run needs before its first step."""

    device: torch.device
    train: Dataset
    test: Dataset
    preprocessing: Preprocessing
    size: tuple[int, int]
    network: nn.Module
    feed: TrainingFeed
    evaluation: EvaluationFeed


def _set_up(order: TrainingOrder, emit: Emit) -> _Setting:
    """Choose the device, map data and caches, build the student from the run's seed."""
    device, why = choose_device(order.training.device)
    emit(Log(message=f"training on {device.type}: {why}"))
    torch.set_num_threads(order.threads)
    if device.type == "cuda" and order.memory_fraction < 1.0:
        torch.cuda.set_per_process_memory_fraction(order.memory_fraction)
    train = open_prepared(order.folders.datasets, order.train_fingerprint)
    test = open_prepared(order.folders.datasets, order.test_fingerprint)
    size = views.output_size(order.views.augmentation, train.height, train.width)
    torch.manual_seed(order.run.seed)
    network = build_student(order.run.student.name, train.classes, in_channels=train.channels, image_side=min(size))
    network.to(device)
    # Module.to takes both at once, but its annotations do not say so.
    network.to(memory_format=torch.channels_last)

    def reader(spec: CacheSpec | None) -> CacheReader | None:
        return None if spec is None else CacheReader(order.folders.caches, spec)

    method, training = order.run.method.expand(), order.training
    train_rows = reader(order.train_cache) if method.needs_teacher else None
    return _Setting(
        device=device,
        train=train,
        test=test,
        preprocessing=student_preprocessing(train, size),
        size=size,
        network=network,
        feed=TrainingFeed(train, order.views, train_rows, training.batch_size, order.run.seed, device, method.views),
        evaluation=EvaluationFeed(test, size, reader(order.test_cache), training.eval_batch_size, device),
    )


def train_run(order: TrainingOrder, emit: Emit, should_stop: ShouldStop) -> dict[str, object]:
    """Train one run to its end, or from its last checkpoint to its end.

    Args:
        order: what to train, on which data, where to leave it.
        emit: told about steps (at most one in two seconds), epochs and the end.
        should_stop: asked before every batch.

    Returns:
        The content of result.json.

    Raises:
        Stopped: ``should_stop`` returned true; the last checkpoint stays.
        NotFinite: the loss or its gradient is not a number.
        InvalidJob: the student cannot take these pictures, or the device is not there.
        store.StoreError: the cache is missing, incomplete or damaged.
    """
    training, method = order.training, order.run.method.expand()
    order.folder.mkdir(parents=True, exist_ok=True)
    setting = _set_up(order, emit)
    device, network, feed = setting.device, setting.network, setting.feed
    # The learned temperatures of a method, trained beside the student and not part of it.
    learned = {
        name: nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device))
        for name, value in method.learned.items()
    }
    parameters = [p for p in network.parameters() if p.requires_grad] + list(learned.values())
    optimizer = _optimizer(training, parameters)

    def forward(images_BHWK: Tensor) -> Tensor:
        inputs = to_input(images_BHWK, setting.preprocessing, channels_last=True)
        with _autocast(training, device, network.training):
            logits_BC: Tensor = network(inputs)
        return logits_BC

    # ---- resume
    epoch, seconds, metrics = 0, 0.0, []
    identity = _identity(order)
    state = load_checkpoint((*order.earlier, order.folder), identity)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        for name, parameter in learned.items():
            parameter.data.copy_(state["learned"][name])
        epoch, seconds, metrics = state["epoch"], state["seconds"], state["metrics"]
        emit(Log(message=f"resumed after epoch {epoch} of {training.epochs}"))
        # An attempt that was killed between its checkpoint and its event told nobody.
        for number, missed in enumerate(metrics[order.told_epoch :], start=order.told_epoch + 1):
            emit(Epoch(epoch=number, epochs=training.epochs, metrics=missed))
        del state

    while epoch < training.epochs:
        # ---- step
        torch.manual_seed(_dropout_seed(order.run.seed, epoch))
        network.train()
        sums = _EpochSums(device)
        started = last_told = time.monotonic()
        for step, batch in enumerate(feed.epoch(epoch)):
            if should_stop():
                raise Stopped(f"run {order.run.name!r} was stopped in epoch {epoch + 1}")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, epoch * feed.steps + step, feed.steps)
            logits = [forward(seen.images) for seen in batch.views]
            optimizer.zero_grad(set_to_none=True)
            try:
                outcome = _batch_objective(method, logits, batch, learned, training, epoch)
                _checked_gradient(parameters, outcome.total, method, training.max_gradient_norm)
            except NotFinite as error:
                raise NotFinite(f"epoch {epoch + 1}, step {step + 1}, before the update: {error}") from error
            optimizer.step()
            sums.add(outcome, (logits[0].argmax(1) == batch.labels).sum(), len(batch.labels))
            if time.monotonic() - last_told > _STEP_EVENT_SECONDS:
                last_told = time.monotonic()
                emit(
                    Step(
                        epoch=epoch + 1,
                        epochs=training.epochs,
                        step=step + 1,
                        steps=feed.steps,
                        loss=float(outcome.total.detach()),
                        images_per_s=sums.rows / (last_told - started),
                    )
                )

        # ---- measure
        means = sums.means()
        train_seconds = time.monotonic() - started
        network.eval()
        line: dict[str, float | None] = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_s": sums.rows / train_seconds,
            **means,
            **evaluate(forward, setting.evaluation, device),
            "seconds": time.monotonic() - started,
        }
        _raise_unless_finite(line, method, epoch)
        metrics.append(line)
        epoch, seconds = epoch + 1, seconds + (line["seconds"] or 0.0)

        # ---- save
        save_checkpoint(
            order.folder,
            {
                "identity": identity,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "learned": {name: parameter.detach().clone() for name, parameter in learned.items()},
                "epoch": epoch,
                "seconds": seconds,
                "metrics": metrics,
            },
        )
        emit(Epoch(epoch=epoch, epochs=training.epochs, metrics=line))

    # ---- leave
    result = _leave(order, setting, metrics, seconds)
    emit(Finished(result=result))
    return result


def _identity(order: TrainingOrder) -> str:
    """What a checkpoint must have been made for to be taken up: everything but where it lies and who computes."""
    text = order.model_dump_json(exclude={"folders", "folder", "earlier", "told_epoch", "threads", "memory_fraction"})
    return hashlib.sha256(text.encode()).hexdigest()


def _dropout_seed(seed: int, epoch: int) -> int:
    """A seed per epoch, so that a resumed epoch draws what it would have drawn."""
    return (seed * 1_000_003 + epoch) % 2**63


def _leave(
    order: TrainingOrder,
    setting: _Setting,
    metrics: list[dict[str, float | None]],
    seconds: float,
) -> dict[str, object]:
    """Write the artifacts; returns result.json."""
    run, best = order.run, _best(metrics)
    trained = sum(len(setting.train.labels_N) / (line["images_per_s"] or 1.0) for line in metrics)
    result: dict[str, object] = {
        "student": run.student.name,
        "method": run.method.label,
        "seed": run.seed,
        "parameters": sum(p.numel() for p in setting.network.parameters()),
        "epochs": len(metrics),
        "selected": "last",
        "last": metrics[-1],
        "best": best,
        "best_epoch": best["epoch"],
        "seconds": seconds,
        "images_per_s": len(metrics) * len(setting.train.labels_N) / max(trained, 1e-9),
        "caches": {
            "train": None if order.train_cache is None else order.train_cache.key,
            "test": None if order.test_cache is None else order.test_cache.key,
        },
        "environment": {
            "device": setting.device.type,
            **{name: version(name) for name in ("torch", "torchvision", "zarr", "retort")},
        },
    }
    config = {
        "run": run.model_dump(mode="json"),
        "method": run.method.expand().model_dump(mode="json"),
        "training": order.training.model_dump(mode="json"),
        "views": order.views.model_dump(mode="json"),
        "caches": result["caches"],
        "datasets": {"train": order.train_fingerprint, "test": order.test_fingerprint},
        "preprocessing": setting.preprocessing.model_dump(mode="json"),
        "class_names": list(setting.train.class_names),
    }
    pictures = torch.from_numpy(setting.test.images_NHWC[:_PARITY_PICTURES].copy())
    if tuple(pictures.shape[1:3]) != setting.size:
        pictures = views.resize(pictures, *setting.size)
    student = Student(setting.network, setting.preprocessing)
    return write_artifacts(order.folder, student, pictures.numpy(), config, metrics, result)
