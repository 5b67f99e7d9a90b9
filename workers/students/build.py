"""Make a student by name. Imports torch; ``catalog`` holds everything that can be known without it.

The caller seeds torch and moves the network: this file draws from the global generator, on the
current default device, and does nothing else.
"""

import importlib
from pathlib import Path
from typing import cast

from torch import nn

from workers.errors import InvalidJob
from workers.students import timm_catalog
from workers.students.catalog import STUDENTS, check_drop_path, check_image_side, plain_name
from workers.students.program import is_uploaded
from workers.students.program_network import build_program
from workers.students.timm_models import build_timm
from workers.students.torchvision_models import build_torchvision


def build_student(
    name: str,
    classes: int,
    in_channels: int = 3,
    image_side: int = 32,
    drop_path: float | None = None,
    program: Path | None = None,
) -> nn.Module:
    """A student with random weights, drawn from torch's global generator; an uploaded program with its own.

    Args:
        name: from the catalog.
        classes: C, at least 2.
        in_channels: K of the images, at least 1.
        image_side: the shorter of their height and width, in pixels. Only vision transformers and their
            like depend on it: they take square images of exactly this side.
        drop_path: rate of stochastic depth; None is the network's own.
        program: file of an uploaded one; None of all others.

    Returns:
        A network from float32 images [B, K, H, W] to logits [B, C].

    Raises:
        UnknownName: there is no such student.
        InvalidJob: it cannot be trained on such images, or a number is too small.
    """
    check_image_side(name, image_side)
    if drop_path is not None:
        check_drop_path(name)
    for what, value, least in (("classes", classes, 2), ("in_channels", in_channels, 1)):
        if value < least:
            raise InvalidJob(f"{what} is {value}; a student needs at least {least}")
    if is_uploaded(name):
        if program is None:
            raise InvalidJob(
                f"student {name!r} is an upload, which the service alone can look up: submit the job there"
            )
        return build_program(name, program, classes, in_channels=in_channels, image_side=image_side)
    network = STUDENTS[name].network
    if network is None:
        build = build_timm if name.startswith(timm_catalog.PREFIX) else build_torchvision
        return build(plain_name(name), classes, in_channels, image_side, drop_path=drop_path)
    module = network.module if "." in network.module else f"workers.students.{network.module}"
    made = getattr(importlib.import_module(module), network.cls)
    options = {} if drop_path is None else {"drop_path": drop_path}
    return cast(nn.Module, made(classes, in_channels, **network.arguments, **options))
