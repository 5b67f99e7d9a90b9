"""Initial weights of a student from a safetensors file: all of it, but a classifier head of another size."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from workers.errors import InvalidJob
from workers.students.safetensors_header import FLOATS
from workers.students.weight_fit import Fit, Shapes, fit_shapes, without_counters


def fit_weights(path: Path, network: nn.Module, larger: nn.Module) -> Fit:
    """Compare a file's tensors with a student's, by name and shape.

    Args:
        network: the student; on any device.
        larger: the same with another number of classes: what differs is the classifier head.

    Raises:
        InvalidJob: the file is no safetensors; a tensor is missing, one is left over, one beside the head has another
            shape, or integers where the student has floating-point values, or the other way round; naming them.
    """
    fit = fit_shapes(tensor_shapes(path), shapes_of(network), shapes_of(larger))
    state = network.state_dict()
    with safe_open(path, framework="pt") as file:
        for name in fit.taken:
            stored = file.get_slice(name).get_dtype()
            if (stored in FLOATS) != state[name].is_floating_point():
                raise InvalidJob(
                    f"these weights are not of this student: {name!r} is {stored}, the student's {state[name].dtype}. "
                    "Floating-point tensors take F64, F32, F16 or BF16, and tensors of integers take integers"
                )
    return fit


def shapes_of(network: nn.Module) -> Shapes:
    """Shapes of a network's state, by name, without counters."""
    return without_counters({name: tuple(x.shape) for name, x in network.state_dict().items()})


def tensor_shapes(path: Path) -> Shapes:
    """Shapes of all tensors of a file, by name, from its header.

    Raises:
        InvalidJob: it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise InvalidJob(f"weights {path.name!r} are no safetensors file: {error}") from error


def load_weights(path: Path, network: nn.Module, fit: Fit) -> None:
    """Copy what fits into the network, on whatever device and in whatever dtype it is.

    Raises:
        InvalidJob: a value is beyond that dtype; the network is no longer what it was.
    """
    state = network.state_dict()
    with torch.no_grad(), safe_open(path, framework="pt") as file:
        for name in fit.taken:
            state[name].copy_(file.get_tensor(name))
            if state[name].is_floating_point() and not state[name].isfinite().all():
                raise InvalidJob(
                    f"weights {path.name!r} have values in {name!r} that are not finite as {state[name].dtype}: save "
                    "them in the student's dtype, and look for what has grown so large"
                )
