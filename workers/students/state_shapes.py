"""Shapes and dtypes of a student's state, for a process that holds them against a file of weights. Loads torch."""

import json
from collections.abc import Sequence
from typing import BinaryIO

import torch

from workers.errors import InvalidJob
from workers.students.build import build_student
from workers.students.weight_fit import Dtypes, Shapes
from workers.students.weights import dtypes_of, shapes_of


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
    """Write JSON: for each number of channels three objects, or why the student cannot be built so.

    Shapes by name, those of the student with a class more, and dtypes by name. The networks are built without memory
    for their weights.

    Args:
        requests, missing: of a child of the sandbox; not read.
    """
    found = [_shapes(name, classes, in_channels, image_side) for in_channels in channels]
    answers.write(json.dumps(found).encode())


def _shapes(name: str, classes: int, in_channels: int, image_side: int) -> tuple[Shapes, Shapes, Dtypes] | str:
    try:
        with torch.device("meta"):
            network, larger = (build_student(name, classes + more, in_channels, image_side) for more in (0, 1))
    except InvalidJob as error:
        return str(error)
    return shapes_of(network), shapes_of(larger), dtypes_of(network)
