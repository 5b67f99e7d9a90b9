"""One student in several processes: each computes a share of every batch, and all make the same update.

The update is the one that a single process would make of the whole batch, up to the order of summation:

1. batch normalisation takes its mean and variance over the whole batch (``WholeBatchNorm2d``, ``WholeBatchNorm1d``);
2. every process gathers all logits of the batch and computes the loss of all of it, so that a loss that compares
   samples with each other sees them, and no share has to be weighted;
3. each differentiates that loss by its own rows' logits, and the gradients of the weights are summed.

Neither averaging losses (``DistributedDataParallel``) nor per-share statistics would give that where shares differ in
size or a loss looks beyond a sample; torch's own ``SyncBatchNorm`` refuses tensors on a CPU. The price is that the loss
is computed once in each process. Dropout draws differ from a single process's.

Processes find each other through a file, so no port is opened for it; gloo then connects them on a CPU, NCCL on GPUs.

Shapes: B batch, b of it here, K channels, H x W, C classes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from workers.errors import InvalidJob, PeerLost, first_line
from workers.training.feed.batches import BatchShare

_PATIENCE = timedelta(minutes=10)
MEETING = "rendezvous"


@contextlib.contextmanager
def _with_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Both backends raise it, for a closed connection as for a time-out.
        raise PeerLost(f"another process of this student is gone: {first_line(error)}") from error


class Replicas:
    """The processes that train one student, seen from one of them; with a single one nothing is sent.

    Args:
        rank: of this process, from 0; the first writes checkpoints and artifacts and tells of progress.
        count: of all.
        folder: where they meet; the same for all, and for no one else.
        device: where this one computes.

    Raises:
        PeerLost: the others do not come within ten minutes.
    """

    def __init__(self, rank: int, count: int, folder: Path, device: torch.device) -> None:
        self.share = BatchShare(rank, count)
        self.is_first = rank == 0
        self.count = count
        self._device = device
        if count > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            with _with_peers():
                meeting = f"file://{folder.resolve() / MEETING}"
                dist.init_process_group(backend, meeting, rank=rank, world_size=count, timeout=_PATIENCE)

    def close(self) -> None:
        """Leave; the others' next exchange fails unless they have left as well."""
        if self.count > 1:
            dist.destroy_process_group()

    def greatest(self, number: int) -> int:
        """The greatest of the numbers that they bring."""
        if self.count == 1:
            return number
        value = torch.tensor(number, device=self._device)
        with _with_peers():
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradient; the tensor itself where there is one."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        with _with_peers():
            dist.all_reduce(total)
        return total

    def whole(self, logits_bC: Tensor, rows: int, local_slice: slice) -> Tensor:
        """Logits [B, C] of a batch of ``rows``, these being rows ``local_slice``; theirs alone carry gradient."""
        if self.count == 1:
            return logits_bC
        # Added to zeros, every number keeps its bits.
        logits_BC = logits_bC.new_zeros((rows, logits_bC.shape[1]))
        logits_BC[local_slice] = logits_bC.detach()
        logits_BC = self.sum(logits_BC)
        return torch.cat((logits_BC[: local_slice.start], logits_bC, logits_BC[local_slice.stop :]))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by the sum over all processes, in one exchange.

        It lies in memory as the parameter does, which a fused optimizer relies on.
        """
        if self.count == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        total = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = torch.split(total, [gradient.numel() for gradient in gradients])
        for parameter, gradient, part in zip(parameters, gradients, parts, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view_as(gradient))

    def normalise_whole_batches(self, network: nn.Module) -> None:
        """Let every batch normalisation of the network see the whole batch; names and values of its state stay.

        Raises:
            InvalidJob: the network has one of another kind, whose statistics would be of a share of the batch.
        """
        if self.count == 1:
            return
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm):
                kind = type(module).__name__
                if kind not in _WHOLE:
                    raise InvalidJob(
                        f"the student's {name!r} is a {kind}, whose statistics would be of one process's share of a "
                        f"batch: train it in one process, or use {', '.join(_WHOLE)}"
                    )
                # In place, so that its parameters stay the ones that an optimizer may know.
                module.__class__ = _WHOLE[kind]


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs, for all of them have used it."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        with _with_peers():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


class WholeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes; in evaluation it is its base class."""

    def forward(self, x_bKHW: Tensor) -> Tensor:
        return _over_all(self, x_bKHW) if self.training else super().forward(x_bKHW)


class WholeBatchNorm1d(nn.BatchNorm1d):
    """As ``WholeBatchNorm2d``, of values [b, K] or [b, K, L]."""

    def forward(self, x_bK: Tensor) -> Tensor:
        return _over_all(self, x_bK) if self.training else super().forward(x_bK)


class WholeBatchNormAct2d(WholeBatchNorm2d):
    """As ``WholeBatchNorm2d``, with the dropout and the activation that follow it in timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x_bKHW: Tensor) -> Tensor:
        y_bKHW: Tensor = self.act(self.drop(super().forward(x_bKHW)))
        return y_bKHW


_WHOLE: dict[str, type[_BatchNorm]] = {
    "BatchNorm2d": WholeBatchNorm2d,
    "BatchNorm1d": WholeBatchNorm1d,
    "BatchNormAct2d": WholeBatchNormAct2d,
}


def _over_all(norm: WholeBatchNorm1d | WholeBatchNorm2d, x: Tensor) -> Tensor:
    """Normalised values [b, K, ...] of this process's rows, and the statistics after them."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    others = [dim for dim in range(x.ndim) if dim != 1]
    count = wide.new_full((1,), wide.numel() // wide.shape[1])
    totals = _Sum.apply(torch.cat((wide.sum(dim=others), count)))
    mean_K, n = totals[:-1] / totals[-1], totals[-1].detach()
    # Of one number for each feature, beside values of any rank.
    shape = (-1, *(1 for _ in others[1:]))
    centred = wide - mean_K.view(shape)
    variance_K = _Sum.apply(centred.square().sum(dim=others)) / n
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    with torch.no_grad():
        norm.running_mean.lerp_(mean_K, norm.momentum)
        norm.running_var.lerp_(variance_K * (n / (n - 1)), norm.momentum)
    scale_K = torch.rsqrt(variance_K + norm.eps)
    if norm.affine:
        scale_K = norm.weight * scale_K
    y: Tensor = centred * scale_K.view(shape)
    if norm.affine:
        y = y + norm.bias.view(shape)
    return y.to(x.dtype)
