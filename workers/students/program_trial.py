"""Trial of an uploaded program, in a confined process: a step of training and an evaluation. Loads torch."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.errors import InvalidJob, InvalidStudentFile, first_line
from workers.students.program import Program, read_program
from workers.students.program_network import build_program

# Height and width of pictures, where the program leaves them open: it may have been exported for a range of them.
_SIDES, _CHANNELS = (64, 32, 224), 3
# Of training without memory, where a job does not say it: more than the batches that are computed.
_BATCH = 64
# Pictures of a batch in evaluation: the job's, as far as so many values of pictures go, and so many at the least.
_VALUES, _ROWS_MIN = 1 << 19, 8
_TOLERANCE = 1e-3
_NAMED = 4


class _Failed(Exception):
    """The program does not run on pictures of a size."""


def mistake(path: str, pictures: Sequence[int] | None = None) -> tuple[str, int]:
    """Reason why the program of a file cannot be a student, empty if it can; and the number of its parameters.

    Args:
        pictures: (batch, channels, height, width) of a job's; without them the program may be for any.
    """
    torch.set_num_threads(1)
    try:
        program = read_program(Path(path))
        channels, height, width = program.shape
        if pictures is not None:
            return _mistake(Path(path), program, tuple(pictures[1:]), pictures[0])
        reasons = list[str]()
        for side in _SIDES if height is None or width is None else (0,):
            size = (channels or _CHANNELS, height or side, width or side)
            try:
                return _mistake(Path(path), program, size, _BATCH)
            except _Failed as failed:
                reasons.append(str(failed))
        return reasons[0], 0
    except (InvalidJob, InvalidStudentFile, _Failed) as error:
        return str(error), 0


def _mistake(path: Path, program: Program, size: tuple[int, ...], batch: int) -> tuple[str, int]:
    """Raises InvalidJob, _Failed."""
    network = build_program(
        "uploaded", path, program.classes, in_channels=size[0], image_side=_side(program, size[1], size[2])
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    try:
        return _mistake_of(network, program, size, batch) or "", count
    except Exception as error:
        # Whatever an operator raises that was given what it does not take.
        raise _Failed(
            f"the program fails on pictures of {size[1]} x {size[2]} in batches of 1 to 3, or of {batch}: "
            f"{first_line(error)}. Export it with an open size of batches, and try it with two of these before"
        ) from error


def _side(program: Program, height: int, width: int) -> int:
    """The side that the program was exported for, where it was for one; the pictures' height and width are tried."""
    return program.shape[1] or program.shape[2] or min(height, width)


def _mistake_of(network: nn.Module, program: Program, size: tuple[int, ...], batch: int) -> str | None:
    for rows in (2, 3):
        logits = network.train()(_pictures(rows, size))
        if not isinstance(logits, Tensor) or logits.shape != (rows, program.classes):
            return f"the program does not give [{rows}, {program.classes}] of logits for {rows} pictures"
        torch.autograd.backward(logits.square().mean())
        if not logits.isfinite().all():
            return (
                "in training the program's logits are not finite: look for what has grown so large, or is divided by 0"
            )
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    if unused:
        listed = ", ".join(unused[:_NAMED])
        return f"the logits do not depend on {len(unused)} of the program's parameters ({listed}): leave them out"
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in network.parameters()):
        return "the program's embedding has sparse gradients, which no optimizer here takes: set sparse=False"
    with torch.no_grad():
        x = _pictures(max(_ROWS_MIN, min(batch, _VALUES // prod(size))), size)
        both, many, *alone = (network.eval()(pictures) for pictures in (x[:2], x, x[:1], x[1:2], x[-1:]))
    if not many.isfinite().all():
        return (
            "in evaluation the program's logits are not finite: look at the running statistics of its normalisations, "
            "or for what has grown so large"
        )
    # A number that grows with the batch may be seen in a large one alone, and may be of some of its pictures.
    together = torch.cat((both, many[:2], many[-1:]))
    if not torch.allclose(together, torch.cat((*alone[:2], *alone)), atol=_TOLERANCE, rtol=_TOLERANCE):
        return "in evaluation the program's logits of a picture depend on the other pictures of its batch"
    # Sizes and shapes alone, so that a batch of any size is tried.
    with torch.no_grad():
        logits = network.to("meta").train()(torch.empty((batch, *size), device="meta"))
    if logits.shape != (batch, program.classes):
        return f"the program does not give [{batch}, {program.classes}] of logits for {batch} pictures"
    return None


def _pictures(batch: int, size: tuple[int, ...]) -> Tensor:
    """Pictures that are all different, the first ones the same in batches of any size."""
    count = size[0] * size[1] * size[2]
    ramp = torch.arange(batch * count, dtype=torch.float32).reshape(batch, *size)
    return torch.sin(ramp * 0.7 + ramp.square() * 1e-3)
