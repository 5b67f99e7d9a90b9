"""Guard of a run's updates: when the flag of a bad step is read, and why its loss or gradient was not finite.

The promise that no update is made of a loss or gradient that is not finite is kept on the device: a flag there, sticky,
has the optimizer skip that update and all later ones. Whoever reads it (see ``check_every``) finds the weights as they
were before the first bad step, and ``explain_not_finite`` computes that step once more to name the sample or the
gradient.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.errors import NotFinite
from workers.methods.method import Method
from workers.training.feed.batches import LoadedBatch
from workers.training.optimization.micro_batches import micro_batches
from workers.training.run import RunState


class ComputeStep(Protocol):
    """``loop.compute_step``: an update, or a check of what it is made of."""

    def __call__(self, run_state: RunState, loaded: LoadedBatch, *, check: bool = False) -> None: ...


def check_every(device: torch.device) -> int:
    """After how many steps the flag is read: reading waits for a GPU, and costs nothing on a CPU."""
    return 50 if device.type == "cuda" else 1


def explain_not_finite(compute: ComputeStep, run_state: RunState, step: int, loaded: LoadedBatch) -> NotFinite:
    """Compute a bad step again, from the weights that it had, and say what is wrong with it.

    Args:
        step: of the run's epoch, from 0; its batch is given.

    Returns:
        The reason, with the sample's place in the batch, and in the training split, where one is the cause.
    """
    where = f"epoch {run_state.epoch + 1}, step {step + 1}, before the update"
    run_state.seed(step)
    part = loaded
    try:
        # A part of a batch is computed at once.
        for part in micro_batches(loaded, run_state.training):
            compute(run_state, part, check=True)
    except NotFinite as error:
        row = "" if error.sample is None else f" (sample {int(part.batch.rows[error.sample])} of the training split)"
        return NotFinite(f"{where}: {error}{row}", error.sample)
    return NotFinite(
        f"{where}: the loss or the gradient of method {run_state.method.name!r} was not finite, and is finite when it "
        "is computed again: lower the learning rate or set training.max_gradient_norm, and look for a failing GPU"
    )


def check_gradient(parameters: Sequence[nn.Parameter], loss: Tensor, method: Method) -> None:
    """Refuse a gradient whose norm is not finite; a finite loss can have one.

    Raises:
        NotFinite: naming the method.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        found = f"norm {float(norm):g}, loss {float(loss.detach()):g}"
        raise NotFinite(
            f"the gradient of method {method.name!r} is not finite ({found}); "
            "lower the learning rate or the weights, or set training.max_gradient_norm"
        )


def check_metrics(line: Mapping[str, float | None], method: Method, epoch: int) -> None:
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
