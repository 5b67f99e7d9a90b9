"""One run while it trains: its student, what updates it, how far it is, and its checkpoint.

A learner owns everything that one run changes, so several of them can train on the same batches (``train_group``)
without touching each other. What they draw (dropout) is a function of (seed, epoch, step), so a learner that was
killed anywhere continues with the same numbers, alone or in another company.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn

from workers.artifacts import load_checkpoint, save_checkpoint
from workers.config import AdamW, CosineSchedule, Sgd, Training, TrainingOrder
from workers.events import Emit, Epoch, Log, ShouldStop, Step, never
from workers.objective import Objective
from workers.replicas import Replicas

# A person watches; an event is a row in the database.
_STEP_EVENT_SECONDS = 2.0
# Of what is kept in a checkpoint: one of another number is not taken up.
_CHECKPOINT_FORMAT = 2


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
    # Fused: one pass over all weights. It takes gradients to lie as their parameters do, and would be silently wrong
    # if one did not; autograd keeps to that, and so does ``Replicas.sum_gradients``.
    chosen = training.optimizer
    if isinstance(chosen, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=chosen.lr,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
            nesterov=chosen.nesterov,
            fused=True,
        )
    assert isinstance(chosen, AdamW)
    return torch.optim.AdamW(parameters, lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay, fused=True)


@dataclass
class EpochSums:
    """What an epoch adds up, on the device; it is read once, at the epoch's end.

    Attributes:
        steps, rows: that were trained on.
        seconds: this run's share of the time that its process, and those of earlier attempts, have spent on it.
    """

    device: torch.device
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, outcome: Objective, correct: Tensor, rows: int) -> None:
        self.steps += 1
        self.rows += rows
        self._add("train_loss", outcome.total.detach() * rows)
        self._add("train_accuracy", correct)
        for name, value in outcome.terms.items():
            self._add(f"train_{name}", value * rows)
        for side, tau in (
            ("student", outcome.student_temperature),
            ("teacher", outcome.teacher_temperature),
        ):
            if tau is not None:
                tau_B = torch.as_tensor(tau, dtype=torch.float64, device=self.device).expand(rows)
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


class Wish(IntEnum):
    """What somebody wants of a run; of several, the greatest counts."""

    GO_ON = 0
    PAUSE = 1
    STOP = 2


@dataclass(frozen=True)
class Member:
    """One run of a group: what to train, who is told, who may stop or pause it."""

    order: TrainingOrder
    emit: Emit
    should_stop: ShouldStop
    should_pause: ShouldStop = never


class Learner:
    """One run's student and all that training changes.

    Args:
        member: whose run it is.
        place: of the run in its group.
        network: as the run's seed has initialised it, on the device.
        replicas: the processes that train it.

    Attributes:
        learned: the temperatures that the method learns, trained beside the student and not part of it.
        epoch: how many are done.
        sums: of the epoch that is under way; ``sums.steps`` of its steps are done.
        metrics: a line for every epoch that is done.
        seconds: that those took.
    """

    def __init__(
        self, member: Member, place: int, network: nn.Module, device: torch.device, replicas: Replicas
    ) -> None:
        self.order, self.emit = member.order, member.emit
        self._member = member
        self.place = place
        self.network = network
        self.training = member.order.training
        self.method = member.order.run.method.expand()
        self.device = device
        self._replicas = replicas
        self.learned = {
            name: nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device))
            for name, value in self.method.learned.items()
        }
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self.parameters = self.weights + list(self.learned.values())
        self.optimizer = _optimizer(self.training, self.parameters)
        self.epoch, self.seconds = 0, 0.0
        self.sums = EpochSums(device)
        self.metrics: list[dict[str, float | None]] = []
        self._identity = _identity(member.order)
        self._told = time.monotonic()

    # -------------------------------------------------------------------------------------------------- its epoch

    def wish(self) -> Wish:
        """What is wanted of it now."""
        if self._member.should_stop():
            return Wish.STOP
        return Wish.PAUSE if self._member.should_pause() else Wish.GO_ON

    @property
    def is_done(self) -> bool:
        return self.epoch >= self.training.epochs

    def prepare_step(self, step: int, steps: int) -> None:
        """Learning rate and random draws of a step; both depend on where it is in the run and on nothing else."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.training, self.epoch * steps + step, steps)
        seed = _draw_seed(self.order.run.seed, self.epoch, step)
        # A tenth of what torch.manual_seed takes, which visits every backend.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def forward(self, inputs_BKHW: Tensor) -> Tensor:
        """Logits [B, C] of normalised float32 pictures.

        bfloat16 while it learns, if that was chosen; what is evaluated is the float32 network that is kept.
        """
        wanted = self.training.precision
        enabled = self.network.training and (wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda"))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            logits_BC: Tensor = self.network(inputs_BKHW)
        return logits_BC

    def tell_step(self, loss: Tensor, steps: int) -> None:
        """An event, unless there was one just now."""
        now = time.monotonic()
        if now - self._told > _STEP_EVENT_SECONDS:
            self._told = now
            self.emit(
                Step(
                    epoch=self.epoch + 1,
                    epochs=self.training.epochs,
                    step=self.sums.steps,
                    steps=steps,
                    loss=float(loss.detach()),
                    images_per_s=self.sums.rows / self.sums.seconds if self.sums.seconds else 0.0,
                )
            )

    def end_epoch(self, line: dict[str, float | None]) -> None:
        """Count the epoch, whose metrics these are, and begin new sums."""
        self.metrics.append(line)
        self.epoch += 1
        self.seconds += line["seconds"] or 0.0
        self.sums = EpochSums(self.device)

    def tell_epoch(self) -> None:
        self.emit(Epoch(epoch=self.epoch, epochs=self.training.epochs, metrics=self.metrics[-1]))

    # --------------------------------------------------------------------------------------------- its checkpoint

    def save(self) -> None:
        """Write where the run is, atomically; of several processes the first does.

        Raises:
            DiskLow: no room; the earlier checkpoint stays.
        """
        if not self._replicas.is_first:
            return
        save_checkpoint(
            self.order.folder,
            {
                "identity": self._identity,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "learned": {name: parameter.detach().clone() for name, parameter in self.learned.items()},
                "epoch": self.epoch,
                "step": self.sums.steps,
                "rows": self.sums.rows,
                "sums": dict(self.sums.sums),
                "epoch_seconds": self.sums.seconds,
                "seconds": self.seconds,
                "metrics": self.metrics,
            },
        )

    def resume(self) -> None:
        """Continue from the farthest checkpoint of this run's attempts, if there is one."""
        state = load_checkpoint((*self.order.earlier, self.order.folder), self._identity)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in self.learned.items():
            parameter.data.copy_(state["learned"][name])
        self.epoch, self.seconds, self.metrics = state["epoch"], state["seconds"], state["metrics"]
        sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.sums = EpochSums(self.device, state["step"], state["rows"], state["epoch_seconds"], sums)
        within = f" and {self.sums.steps} steps" if self.sums.steps else ""
        self.emit(Log(message=f"resumed after epoch {self.epoch} of {self.training.epochs}{within}"))
        # An attempt that was killed between its checkpoint and its event told nobody.
        for number, missed in enumerate(self.metrics[self.order.told_epoch :], start=self.order.told_epoch + 1):
            self.emit(Epoch(epoch=number, epochs=self.training.epochs, metrics=missed))


def _identity(order: TrainingOrder) -> str:
    """What a checkpoint must have been made for to be taken up: everything but where it lies and who computes."""
    elsewhere = {"folders", "folder", "earlier", "told_epoch", "threads", "checkpoint_s", "rank"}
    elsewhere |= {"has_gpu_share", "memory_fraction"}
    text = f"{_CHECKPOINT_FORMAT} {order.model_dump_json(exclude=elsewhere)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _draw_seed(seed: int, epoch: int, step: int) -> int:
    """A seed per step, so that a resumed step draws what it would have drawn."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63


def best(metrics: Sequence[Mapping[str, float | None]]) -> Mapping[str, float | None]:
    """The epoch with the highest test accuracy, the earliest of equals."""
    return max(metrics, key=lambda line: (line["top1"] or 0.0, -(line["epoch"] or 0.0)))
