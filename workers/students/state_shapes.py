"""Shapes of a student's state, for a process that holds them against a file of weights. Loads torch."""

import json
from collections.abc import Sequence
from typing import BinaryIO

import torch

from workers.errors import InvalidJob
from workers.students.build import build_student
from workers.students.weight_fit import Shapes
from workers.students.weights import shapes_of


def answer(
    requests: BinaryIO,
    answers: BinaryIO,
    missing: Sequence[str],
    *,
    name: str,
    classes: int,
    channels: Sequence[int],
    image_side: int,
) -> None:
    """Write JSON: for each number of channels [{name: shape}, {name: shape}], or why the student cannot be built so.

    The second one has a class more. The networks are built without memory for their weights.

    Args:
        requests, missing: of a child of the sandbox; not read.
    """
    found = [_shapes(name, classes, in_channels, image_side) for in_channels in channels]
    answers.write(json.dumps(found).encode())


def _shapes(name: str, classes: int, in_channels: int, image_side: int) -> list[Shapes] | str:
    try:
        with torch.device("meta"):
            networks = [build_student(name, classes + more, in_channels, image_side) for more in (0, 1)]
    except InvalidJob as error:
        return str(error)
    return [shapes_of(network) for network in networks]
