"""Trial of a student: whether it takes the pictures, for networks whose catalog entry does not tell. Loads torch."""

import torch
from torch import Tensor, nn

from workers.errors import InvalidJob, first_line
from workers.students.build import build_student
from workers.students.timm_catalog import PREFIX


def try_student(
    name: str, classes: int, in_channels: int, size: tuple[int, int], *, batch: int, drop_path: float | None
) -> str:
    """Build a student and run it on ``batch`` blank pictures as in training; a sentence on it.

    Args:
        size: of the pictures, (height, width).
        batch: pictures of the smallest batch; 2 at most are tried.

    Raises:
        InvalidJob: it cannot take them, or does not return one tensor of logits [B, C].
    """
    shape, network, logits = (min(batch, 2), in_channels, *size), None, None
    # timm's can nearly all be built and run without memory; what fails there is tried in earnest.
    for device in ("meta", "cpu") if name.startswith(PREFIX) else ("cpu",):
        try:
            with torch.device(device), torch.no_grad():
                network = build_student(name, classes, in_channels, min(size), drop_path=drop_path).train()
                logits = network(torch.zeros(shape))
            break
        except Exception as error:
            # Whatever a network raises on pictures that do not suit it.
            if device == "cpu":
                raise _refusal(name, size, batch, error) from error
    if network is None or not isinstance(logits, Tensor) or tuple(logits.shape) != (shape[0], classes):
        raise InvalidJob(f"student {name!r} is no classifier: it does not return logits [B, {classes}]")
    return f"student {name!r} has {_count(network):,} parameters for {classes} classes"


def _refusal(name: str, size: tuple[int, int], batch: int, error: Exception) -> InvalidJob:
    if isinstance(error, InvalidJob):
        return error
    return InvalidJob(
        f"student {name!r} cannot be trained on pictures of {size[0]} x {size[1]} in batches of {batch}: "
        f"{first_line(error)}. Give views of another size (resized_crop), or choose another student"
    )


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
