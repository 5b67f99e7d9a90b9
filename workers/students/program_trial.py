"""Trial of an uploaded program, in a confined process: a step of training and an evaluation. Loads torch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from workers.errors import InvalidJob, first_line
from workers.students.program import Program, read_program
from workers.students.program_network import build_program

_SIDE, _CHANNELS = 64, 3
_TOLERANCE = 1e-3
_NAMED = 4


def mistake(path: str) -> str:
    """Reason why the program of a file cannot be a student; empty if it can."""
    torch.set_num_threads(1)
    try:
        return _mistake(Path(path)) or ""
    except InvalidJob as error:
        return str(error)


def _mistake(path: Path) -> str | None:
    program = read_program(path)
    channels, height, width = program.shape
    size = (channels or _CHANNELS, height or width or _SIDE, width or height or _SIDE)
    network = build_program("uploaded", path, program.classes, in_channels=size[0], image_side=size[1])
    try:
        return _mistake_of(network, program, size)
    except Exception as error:
        # Whatever an operator raises that was given what it does not take.
        return (
            f"the program fails on pictures of {size[1]} x {size[2]} in batches of 2 and 3: {first_line(error)}. "
            "Export it with an open size of batches, and try it with two of these before"
        )


def _mistake_of(network: nn.Module, program: Program, size: tuple[int, int, int]) -> str | None:
    for batch in (2, 3):
        logits = network.train()(_pictures(batch, size))
        if not isinstance(logits, Tensor) or logits.shape != (batch, program.classes):
            return f"the program does not give [{batch}, {program.classes}] of logits for {batch} pictures"
        torch.autograd.backward(logits.square().mean())
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    if unused:
        listed = ", ".join(unused[:_NAMED])
        return f"the logits do not depend on {len(unused)} of the program's parameters ({listed}): leave them out"
    with torch.no_grad():
        both, alone = (network.eval()(_pictures(batch, size)) for batch in (2, 1))
    if not torch.allclose(both[:1], alone, atol=_TOLERANCE, rtol=_TOLERANCE):
        return "in evaluation the program's logits of a picture depend on the other pictures of its batch"
    return None


def _pictures(batch: int, size: tuple[int, int, int]) -> Tensor:
    """Pictures that are all different, the first ones the same in batches of any size."""
    count = size[0] * size[1] * size[2]
    ramp = torch.arange(batch * count, dtype=torch.float32).reshape(batch, *size)
    return torch.sin(ramp * 0.7 + ramp.square() * 1e-3)
