"""Parts of an update: the student's logits, the loss of a batch, and why a loss or gradient was not finite.

The promise that no update is made of a loss or gradient that is not finite is kept on the device: a flag there, sticky,
has the optimizer skip that update and all later ones. Whoever reads it (see ``check_every``) finds the weights as they
were before the first bad step, and ``explain_not_finite`` computes that step once more to name the sample or the
gradient.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workers.errors import NotFinite
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.method import Method
from workers.objective.objective import objective_of
from workers.objective.results import Objective
from workers.objective.view import View
from workers.training.batches import TrainingBatch
from workers.training.run import RunState


def check_every(device: torch.device) -> int:
    """After how many steps the flag is read: reading waits for a GPU, and costs nothing on a CPU."""
    return 50 if device.type == "cuda" else 1


def explain_not_finite(run_state: RunState, step: int, batch: TrainingBatch, inputs: Sequence[Tensor]) -> NotFinite:
    """Compute a bad step again, from the weights that it had, and say what is wrong with it.

    Args:
        step: of the run's epoch, from 0; its batch and inputs are given.
    """
    where = f"epoch {run_state.epoch + 1}, step {step + 1}, before the update"
    run_state.seed(step)
    try:
        logits = forward(run_state, batch, inputs)
        run_state.optimizer.zero_grad(set_to_none=True)
        outcome = batch_objective(run_state, logits, batch, check=True)
        torch.autograd.backward(outcome.total)
        run_state.replicas.sum_gradients(run_state.weights)
        check_gradient(run_state.parameters, outcome.total, run_state.method)
    except NotFinite as error:
        return NotFinite(f"{where}: {error}", error.sample)
    return NotFinite(
        f"{where}: the loss or the gradient of method {run_state.method.name!r} was not finite, and is finite when it "
        "is computed again: lower the learning rate or set training.max_gradient_norm, and look for a failing GPU"
    )


def batch_objective(run_state: RunState, logits: Sequence[Tensor], batch: TrainingBatch, *, check: bool) -> Objective:
    """The loss of a batch whose first views have these student logits, [B, C] each.

    Raises:
        NotFinite: if it is to be checked; with the sample's place in the training split, where one is the cause.
    """
    both = [
        View(logits_BC, seen.teacher_logits, seen.teacher_statistics, seen.known)
        for logits_BC, seen in zip(logits, batch.views, strict=False)
    ]
    try:
        return objective_of(
            run_state.method,
            both,
            batch.labels,
            epoch=run_state.epoch + 1,
            epochs=run_state.training.epochs,
            learned=run_state.learned,
            cache_statistics=_of_batch(run_state.cache_statistics, batch),
            label_smoothing=run_state.training.label_smoothing,
            check=check,
        )
    except NotFinite as error:
        if error.sample is None:
            raise
        row = int(batch.rows[error.sample])
        raise NotFinite(f"{error} (sample {row} of the training split)", error.sample) from error


def _of_batch(over_cache: Mapping[CacheStatistic, Tensor], batch: TrainingBatch) -> dict[CacheStatistic, Tensor]:
    """Statistics over the cache, those of samples for the batch's rows alone: on the device, without waiting."""
    return {
        each: values.index_select(0, batch.device_rows) if each.is_per_sample else values
        for each, values in over_cache.items()
    }


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


def forward(run_state: RunState, batch: TrainingBatch, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Logits [B, C] of the whole batch for each view that the method compares.

    Args:
        inputs: normalised float32 [b, K, H, W] of each view, of this process's part of the batch.
    """
    # Not the batch itself in the comprehension: what that closes over outlives a failure.
    whole, rows, local_slice = run_state.replicas.whole, len(batch.labels), batch.local_slice
    return [whole(run_state.forward(x), rows, local_slice) for x in inputs[: run_state.method.views]]
