"""Networks for uploaded programs, and what torch.export makes of them."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.errors import InvalidStudentFile
from workers.student_files import program_child

BYTES_MAX = 1 << 24


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


class Drawing(nn.Module):
    """Network of a function that is used in training alone, with attention of its own rate of dropout."""

    def __init__(self, function: Callable[[Tensor], Tensor], rate: float = 0.0) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.function, self.rate = function, rate

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x.flatten(1)))
        if self.training:
            y = self.function(y)
        q = y.reshape(-1, 2, 4, 2)
        y = y + F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate if self.training else 0.0).flatten(1)
        logits: Tensor = self.head(y)
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


def converted(path: Path) -> Path:
    """The archive in its safe form, made in this process."""
    path.write_bytes(program_child.safe_form(*program_child.read_archive(path, BYTES_MAX)))
    return path


def refusal(path: Path) -> str:
    """Why an archive is refused."""
    with pytest.raises(InvalidStudentFile) as raised:
        program_child.read_archive(path, BYTES_MAX)
    return str(raised.value)


def changed(path: Path, change: Callable[[dict[str, Any]], object], member: str = "models/model.json") -> Path:
    """The archive with other JSON in a member."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            text = old.read(info)
            if info.filename.endswith(member):
                document = json.loads(text)
                change(document)
                text = json.dumps(document).encode()
            new.writestr(info, text)
    path.write_bytes(content.getvalue())
    return path


def nodes_of(document: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """Nodes of a program's JSON by a part of their operator's name."""
    found = [node for node in document["graph_module"]["graph"]["nodes"] if target in node["target"]]
    assert found, target
    return found


def set_argument(node: dict[str, Any], name: str, value: object) -> None:
    """Give a node another argument."""
    next(each for each in node["inputs"] if each["name"] == name)["arg"] = value
