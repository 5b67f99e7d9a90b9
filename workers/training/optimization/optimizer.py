"""Optimizer and learning rate of a run, as its training options say."""

import inspect
import math
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from workers.config.schedules import CosineSchedule, OneCycleSchedule
from workers.config.training import Adam, AdamW, RmsProp, Sgd, Training
from workers.training.optimization.parameter_groups import Groups

_Kind = TypeVar("_Kind", bound=torch.optim.Optimizer)


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one update (``step`` from 0), after warm-up, schedule and restarts."""
    phase = next(phase for phase in training.phases if step < phase.end * steps_per_epoch)
    epochs, step = phase.end - phase.begin, step - phase.begin * steps_per_epoch
    warmup_steps, total_steps = phase.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    schedule = phase.schedule
    if step < warmup_steps:
        factor = min((step + 1) / warmup_steps, 1.0)
    elif isinstance(schedule, OneCycleSchedule):
        factor = _one_cycle(schedule, step, total_steps)
    elif isinstance(schedule, CosineSchedule):
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        factor = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    else:
        epoch = step // steps_per_epoch
        passed = sum(epoch >= boundary for boundary in schedule.boundaries(epochs))
        factor = schedule.gamma**passed
    return phase.learning_rate * factor


def _one_cycle(schedule: OneCycleSchedule, step: int, steps: int) -> float:
    """Factor of the largest learning rate, as ``torch.optim.lr_scheduler.OneCycleLR`` has it."""
    first = 1 / schedule.div_factor
    rise = schedule.pct_start * steps
    points = [(0.0, first), (rise - 1, 1.0), (steps - 1.0, first / schedule.final_div_factor)]
    if schedule.three_phase:
        points.insert(2, (2 * rise - 2, first))
    spans = [*pairwise(points)]
    (begin, one), (end, other) = next((span for span in spans if step <= span[1][0]), spans[-1])
    # Of so few steps that the rise ends before it begins, the first is its end.
    done = 1.0 if end <= begin else (step - begin) / (end - begin)
    if schedule.anneal == "linear":
        return (other - one) * done + one
    return other + (one - other) / 2 * (1 + math.cos(math.pi * done))


def uncompiled(kind: type[_Kind]) -> type[_Kind]:
    """Subclass of an optimizer of torch whose methods do without ``torch.compile``; what they compute is the same.

    torch's own import the compiler, to keep it out of themselves, whether there is one at work or not. That takes 1.0 s
    of processor time and 95 MiB of every process that trains, at its start and after each loss.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    # Beside the compiler's, torch's wrapper of ``step`` has no other purpose than this one.
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


_rmsprop_step = inspect.unwrap(torch.optim.RMSprop.step)


class _GuardedRmsProp(torch.optim.RMSprop):
    """RMSprop that leaves the parameters as they are where ``found_inf`` is 1, as torch's fused optimizers do.

    torch has no fused one. On a GPU nothing may wait for the flag: the gradients and the learning rate are set to 0
    there. That changes its averages, which nobody reads any more: the flag is never set back.

    Attributes:
        reads_flag: the flag is read on the host.
    """

    found_inf: Tensor | None = None
    reads_flag = True

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss is computed again
        """Update the parameters once."""
        bad = self.found_inf
        if bad is None or self.reads_flag:
            if bad is None or not bool(bad):
                _rmsprop_step(self)
            return
        good, rates = 1.0 - bad, [group["lr"] for group in self.param_groups]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for gradient in gradients:
            torch.nan_to_num_(gradient, 0.0, 0.0, 0.0)
        torch._foreach_mul_(gradients, good)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate * good
        _rmsprop_step(self)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


_Sgd, _Adam, _AdamW = uncompiled(torch.optim.SGD), uncompiled(torch.optim.Adam), uncompiled(torch.optim.AdamW)
_RmsProp = uncompiled(_GuardedRmsProp)


def new_optimizer(training: Training, parameters: Groups, device: torch.device) -> torch.optim.Optimizer:
    """Optimizer over these parameters, with kernels that update all of them in one pass.

    Args:
        parameters: all of them, or groups with options of their own, see ``parameter_groups``.
    """
    # Fused: one pass over all weights. It takes gradients to lie as their parameters do, and would be silently wrong
    # if one did not; autograd keeps to that, and so does ``Replicas.sum_gradients``.
    chosen, is_cuda = training.optimizer, device.type == "cuda"
    optimizer: torch.optim.Optimizer
    if isinstance(chosen, Sgd):
        optimizer = _Sgd(
            parameters,
            lr=chosen.lr,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
            nesterov=chosen.nesterov,
            fused=True,
        )
    elif isinstance(chosen, RmsProp):
        optimizer = _RmsProp(parameters, **chosen.model_dump(exclude={"kind"}), foreach=True, capturable=is_cuda)
        optimizer.reads_flag = not is_cuda
    else:
        kind = _AdamW if isinstance(chosen, AdamW) else _Adam
        eps: dict[str, Any] = {"eps": chosen.eps} if isinstance(chosen, Adam) else {}
        optimizer = kind(
            parameters,
            lr=chosen.lr,
            betas=chosen.betas,
            weight_decay=chosen.weight_decay,
            fused=True,
            capturable=is_cuda,
            **eps,
        )
    if is_cuda:
        # At one address, where a CUDA graph reads it; given to the constructor, it would be copied back to be checked.
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(chosen.lr, device=device)
    return optimizer
