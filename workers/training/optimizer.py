"""Optimizer and learning rate of a run, as its training options say."""

import inspect
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from workers.config.training import AdamW, CosineSchedule, Sgd, Training

_Kind = TypeVar("_Kind", bound=torch.optim.Optimizer)


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


_Sgd, _AdamW = uncompiled(torch.optim.SGD), uncompiled(torch.optim.AdamW)


def new_optimizer(
    training: Training, parameters: Sequence[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Optimizer over these parameters, with kernels that update all of them in one pass."""
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
    else:
        assert isinstance(chosen, AdamW)
        optimizer = _AdamW(
            parameters,
            lr=chosen.lr,
            betas=chosen.betas,
            weight_decay=chosen.weight_decay,
            fused=True,
            capturable=is_cuda,
        )
    if is_cuda:
        # At one address, where a CUDA graph reads it; given to the constructor, it would be copied back to be checked.
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(chosen.lr, device=device)
    return optimizer
