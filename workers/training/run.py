"""One run while it trains: its student, what updates it, how far it is, and its checkpoint.

A ``RunState`` owns everything that one run changes, so several of them can train on the same batches (``train_group``)
without touching each other. What they draw (dropout) is a function of (seed, epoch, step), so a run that was
killed anywhere continues with the same numbers, alone or in another company.
"""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from workers.config.teacher import Preprocessing
from workers.devices import describe_environment
from workers.events import Epoch, Log, Split
from workers.methods.cache_statistics import CacheStatistic
from workers.precision import PRECISIONS, choose_precision
from workers.training.checkpoints.checkpoint import (
    checkpoint_identity,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from workers.training.checkpoints.extension import load_extended
from workers.training.evaluation.evaluate import measure_split, name_of
from workers.training.evaluation.evaluation_feed import EvaluationFeed
from workers.training.evaluation.final_evaluation import FinalEvaluation
from workers.training.metrics.early_stopping import best_epoch, is_stopped_early
from workers.training.metrics.epoch_sums import EpochSums, Reading
from workers.training.metrics.step_reports import StepReports
from workers.training.metrics.temperatures import EpochTemperatures, epoch_document
from workers.training.optimization.batch_counters import BatchCounters
from workers.training.optimization.distributed import Replicas
from workers.training.optimization.ema import MovingAverage
from workers.training.optimization.micro_batches import part_count
from workers.training.optimization.optimizer import new_optimizer
from workers.training.optimization.parameter_groups import parameter_groups
from workers.training.optimization.step_seed import seed_step
from workers.training.run_handle import RunHandle, Signal


class RunState:
    """One run's student and all that training changes.

    Args:
        handle: whose run it is.
        place: of the run in its group.
        network: as the run's seed has initialised it, on the device.
        picture: (channels, height, width) of its input.
        replicas: the processes that train it.
        is_replayed: its steps are to be replayed from a CUDA graph.
        cache_statistics: over the teacher's cache, on the device; at least what the method reads.

    Attributes:
        learned: the temperatures that the method learns, trained beside the student and not part of it.
        ema: moving average of the student's weights; None where none is asked for.
        epoch: how many are done.
        not_finite: float32 [], on the device; 1 from the first step on whose loss or gradient is not finite: no update
            is made any more, and nothing sets it back.
        one: float32 [], on the device.
        sums: of the epoch that is under way; ``sums.steps`` of its steps are done.
        metrics: a line for every epoch that is done.
        temperatures: an item of ``temperatures.json`` for every epoch that is done.
        final: evaluation of the weights that leave it; None until all of its epochs are done.
        seconds: that those took.
        best_weights: state that would leave after the best epoch on the validation split, if that is kept; else empty.
        environment: what it is trained on, for result.json.
    """

    def __init__(
        self,
        handle: RunHandle,
        place: int,
        network: nn.Module,
        picture: tuple[int, int, int],
        device: torch.device,
        replicas: Replicas,
        *,
        is_replayed: bool = False,
        cache_statistics: Mapping[CacheStatistic, Tensor] = MappingProxyType({}),
    ) -> None:
        self.task, self.emit = handle.task, handle.emit
        self._handle = handle
        self.place = place
        self.network = network
        self.training = handle.task.training
        self.method = handle.task.run.method.expand()
        self.device = device
        self.cache_statistics = {each: cache_statistics[each] for each in self.method.cache_statistics}
        self.replicas = replicas
        self.learned = {
            name: nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device))
            for name, value in self.method.learned.items()
        }
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self.parameters = self.weights + list(self.learned.values())
        groups = parameter_groups(self.training, network, self.learned)
        self.optimizer = new_optimizer(self.training, groups, device)
        self.not_finite, self.one = torch.zeros((), device=device), torch.ones((), device=device)
        # A fused optimizer makes no update where this is 1; torch's own gradient scaler uses it so.
        self.optimizer.found_inf = self.not_finite  # type: ignore[attr-defined]  # it is looked up by name
        self.counters = BatchCounters(network)
        self.ema = None if self.training.ema is None else MovingAverage(network, self.training.ema.decay)
        self.precision, self.precision_reason = choose_precision(
            self.training.precision,
            device,
            network,
            -(-self.training.batch_size // self.training.actors),
            picture,
            is_replayed=is_replayed,
        )
        self.epoch, self.seconds = 0, 0.0
        self.sums = EpochSums(device)
        self.metrics: list[dict[str, float | None]] = []
        self.temperatures: list[dict[str, object]] = []
        self.final: FinalEvaluation | None = None
        self.environment: dict[str, str] = describe_environment(device, self.precision)
        self._identity = checkpoint_identity(handle.task)
        self._step_reports = StepReports()
        # Folders with checkpoints that its own first one makes superfluous.
        self._earlier = handle.task.earlier
        self.best_weights: dict[str, Tensor] = {}

    # -------------------------------------------------------------------------------------------------- its epoch

    def signal(self) -> Signal:
        """Return the signal that the run is to obey now."""
        return self._handle.signal

    @property
    def is_done(self) -> bool:
        """Whether all of its epochs are done, or early stopping has ended it."""
        return self.epoch >= self.training.epochs or is_stopped_early(self.metrics, self.training)

    @property
    def best_epoch(self) -> int | None:
        """Best epoch so far on the validation split, counted from 1; None without such a split."""
        return best_epoch(self.metrics, self.training)

    def take_leaving_weights(self) -> None:
        """Put the weights that leave in place: averaged ones, or the best epoch's. Nothing is trained afterwards."""
        if self.best_weights or self.training.leaves_average:
            self.network.load_state_dict(self.best_weights or self._leaving_state())

    def _leaving_state(self) -> dict[str, Tensor]:
        """State of the network as it would leave now; its counters are attached. Not copied."""
        state = self.network.state_dict()
        return state if self.ema is None or not self.training.leaves_average else {**state, **self.ema.state()}

    def seed(self, step: int) -> None:
        """Begin the random draws of a step of this epoch."""
        seed_step(self.task.run.seed, self.epoch, step, self.device)

    def count_step(self, rows: int) -> None:
        """Count a step that was given to the device."""
        self.sums.count(rows)
        self.counters.steps += self.method.views * part_count(rows, self.training)

    def report_step(self, steps: int) -> Reading | None:
        """Send an event now and then, as ``StepReports`` has them; return what was read for it."""
        epoch, epochs = self.epoch + 1, self.training.epochs
        return self._step_reports.report(self.sums, epoch=epoch, epochs=epochs, steps=steps, emit=self.emit)

    def evaluate(self, feeds: Mapping[Split, EvaluationFeed], preprocessing: Preprocessing) -> dict[str, float | None]:
        """Measure the student on each split as a whole, and with its averaged weights if there are any.

        Args:
            feeds: this process's share of each split, with the teacher's cache or without.
            preprocessing: from picture to the network's input.

        Returns:
            ``top1``, ``top5``, ``nll``, ``ece``, ``agreement`` and ``kl_to_teacher`` as ``Measured`` has them, those of
            averaged weights as ``ema_NAME``, those of the validation split as ``validation_NAME``; the last two are
            None without a teacher, the others without a label.
        """
        forwards: dict[str, Callable[[Tensor], Tensor]] = {"": self.network}
        if self.ema is not None:
            forwards["ema_"] = self.ema.forward
        metrics: dict[str, float | None] = {}
        for (split, feed), (weights, forward) in itertools.product(feeds.items(), forwards.items()):
            measured = measure_split(forward, feed, preprocessing, self.replicas)
            figures = measured.figures(has_teacher=feed.has_teacher)
            metrics |= {name_of(split, weights + name): value for name, value in figures.items()}
        return metrics

    def end_epoch(self, line: dict[str, float | None], temperatures: EpochTemperatures) -> None:
        """Count the epoch, whose metrics and temperatures these are, and begin new sums."""
        self.metrics.append(line)
        self.epoch += 1
        self.temperatures.append(epoch_document(self.epoch, temperatures))
        if self.training.keep == "best" and self.best_epoch == self.epoch:
            with self.counters.attached():
                self.best_weights = {name: tensor.clone() for name, tensor in self._leaving_state().items()}
        self.seconds += line["seconds"] or 0.0
        self.sums.reset()
        self._step_reports.begin_epoch()

    def report_epoch(self) -> None:
        self.emit(Epoch(epoch=self.epoch, epochs=self.training.epochs, metrics=self.metrics[-1]))

    # --------------------------------------------------------------------------------------------- its checkpoint

    @property
    def tensors(self) -> dict[str, list[Tensor]]:
        """All that a step changes on the device, by what it is."""
        of_optimizer = [v for of in self.optimizer.state.values() for v in of.values() if isinstance(v, Tensor)]
        return {
            "weights": [*self.parameters],
            "statistics": list(self.network.buffers()),
            "averages": [] if self.ema is None else self.ema.averages,
            "optimizer state": of_optimizer,
            "sums": [self.not_finite, *self.sums.tensors],
        }

    def release(self) -> None:
        """Free its memory on the device, even if something still refers to it; it is not used any more."""
        for tensor in itertools.chain(*self.tensors.values()):
            tensor.grad, tensor.data = None, torch.empty(0)
        self.optimizer.state.clear()
        self.best_weights = {}

    def save(self) -> None:
        """Write where the run is, atomically; of several processes the first does.

        Those of earlier attempts go then: one of a run is enough to go on from.

        Raises:
            DiskLow: no room; the earlier checkpoint stays.
        """
        if not self.replicas.is_first:
            return
        with self.counters.attached():
            network = self.network.state_dict()
        state = {
            "identity": self._identity,
            "network": network,
            "optimizer": self.optimizer.state_dict()["state"],
            "learned": dict(self.learned),
            "ema": {} if self.ema is None else self.ema.state(),
            "epoch": self.epoch,
            "sums": self.sums.state(),
            "seconds": self.seconds,
            "metrics": self.metrics,
            "temperatures": self.temperatures,
            "final": None if self.final is None else self.final.state(),
            "environment": self.environment,
            "best_weights": self.best_weights,
        }
        save_checkpoint(self.task.folder, state)
        # It is at least as far as the one it went on from, or none of those can be used.
        remove_checkpoints(self._earlier)
        self._earlier = ()

    def resume(self) -> bool:
        """Continue from the farthest checkpoint of this run's attempts; returns whether there is one."""
        state = load_checkpoint((*self.task.earlier, self.task.folder), self._identity, self.emit)
        if state is None and self.task.extends is not None:
            state = load_extended(self.task, self.task.extends)
            self.emit(Log(message=f"goes on from run {self.task.extends.run}"))
        if state is None:
            return False
        with self.counters.attached():
            self.network.load_state_dict(state["network"])
        # The learning rate is a function of the step, and on a GPU a tensor that stays where it is.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for name, parameter in self.learned.items():
            parameter.data.copy_(state["learned"][name])
        if self.ema is not None:
            self.ema.load(state["ema"])
        self.epoch, self.seconds, self.metrics = state["epoch"], state["seconds"], state["metrics"]
        self.temperatures = state["temperatures"]
        self.final = None if state["final"] is None else FinalEvaluation.of_state(state["final"])
        self.best_weights = state["best_weights"]
        self.sums.load(state["sums"])
        # What is trained here says where; what was said of a part that is done stays.
        earlier: dict[str, str] = state["environment"]
        self._keep_precision(earlier)
        self.environment = earlier if self.is_done else {**earlier, **self.environment}
        within = f" and {self.sums.steps} steps" if self.sums.steps else ""
        self.emit(Log(message=f"resumed after epoch {self.epoch} of {self.training.epochs}{within}"))
        # An attempt that was killed between its checkpoint and its event told nobody.
        for number, missed in enumerate(self.metrics[self.task.told_epoch :], start=self.task.told_epoch + 1):
            self.emit(Epoch(epoch=number, epochs=self.training.epochs, metrics=missed))
        return True

    def _keep_precision(self, earlier: Mapping[str, str]) -> None:
        """Go on in the precision that ``auto`` was when the run began on such a device, by an earlier version."""
        began = earlier.get("precision")
        if self.training.precision != "auto" or earlier.get("device") != self.device.type:
            return
        for precision in PRECISIONS:
            if precision == began != self.precision:
                self.precision, self.precision_reason = precision, "the run has begun in it"
                self.environment["precision"] = precision
                self.emit(Log(message=f"trains in {precision}: the run has begun in it"))
