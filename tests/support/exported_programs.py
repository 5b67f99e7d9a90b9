"""Networks for uploaded programs, and what torch.export makes of them."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tiny(nn.Module):
    """A network with batch normalisation, dropout, a buffer, a constant, a view by the batch's size and a split."""

    def __init__(self, channels: int = 1, classes: int = 10, rate: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(8, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Logits [B, C]."""
        x = F.relu(self.body(x_BKHW), inplace=True) * self.scale + torch.tensor([1.0])
        left, right = x.chunk(2, dim=1)
        x = F.adaptive_avg_pool2d(torch.cat((right, left), dim=1), 1)
        logits: Tensor = self.head(self.drop(x.view(x.shape[0], -1)))
        return logits


def exported(
    network: nn.Module, path: Path, *, channels: int = 1, side: int = 8, is_open: bool = True, inputs: int = 1
) -> Path:
    """Write the archive of a network as it is, for batches of any size unless ``is_open`` is false."""
    batch = {0: torch.export.Dim("batch")}
    pictures = (torch.zeros(2, channels, side, side),) * inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, pictures, dynamic_shapes=(batch,) * inputs if is_open else None)
        torch.export.save(program, path)
    return path
