"""Copies of many tensors from a GPU to the host in few transfers: one for each dtype, whatever their number."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor on the host, with its dtype, shape and strides; one that is there already is returned itself.

    The strides matter: a fused optimizer takes its state to lie in memory as the parameters do.
    """
    result = [tensor.detach() for tensor in tensors]
    by_kind = defaultdict[tuple[torch.device, torch.dtype], list[int]](list)
    for place, tensor in enumerate(result):
        if tensor.device.type != "cpu":
            by_kind[tensor.device, tensor.dtype].append(place)
    for places in by_kind.values():
        for place, tensor in zip(places, copy_packed([result[place] for place in places]), strict=True):
            result[place] = tensor
    return result


def copy_packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the host of tensors of one dtype and device, made in one transfer; strides are kept."""
    dense = [_dense(tensor) for tensor in tensors]
    sizes = [tensor.numel() for tensor in dense]
    packed = dense[0].new_empty(sum(sizes))
    for tensor, part in zip(dense, torch.split(packed, sizes), strict=True):
        part.copy_(tensor.as_strided((tensor.numel(),), (1,)))
    parts = torch.split(packed.cpu(), sizes)
    return [
        part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
        for tensor, part in zip(dense, parts, strict=True)
    ]


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, if its elements fill a piece of memory in some order; else a contiguous copy."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != filled:
            return tensor.contiguous()
        filled *= size
    return tensor
