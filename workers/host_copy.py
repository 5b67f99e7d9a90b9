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
        dense = [_dense(result[place]) for place in places]
        flat = torch.cat([tensor.as_strided((tensor.numel(),), (1,)) for tensor in dense]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in dense])
        for place, tensor, part in zip(places, dense, parts, strict=True):
            result[place] = part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
    return result


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, if its elements fill a piece of memory in some order; else a contiguous copy."""
    formats = [torch.contiguous_format, *({4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(tensor.ndim, []))]
    if any(tensor.is_contiguous(memory_format=each) for each in formats):
        return tensor
    return tensor.contiguous()
