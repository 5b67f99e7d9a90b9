"""Initial weights of a student from a safetensors file: all of it, but a classifier head of another size."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from workers.errors import InvalidJob
from workers.students.safetensors_header import VARIANCE
from workers.students.weight_fit import Dtypes, Fit, Shapes, fit_shapes, with_dtypes, without_counters

_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}


def fit_weights(path: Path, network: nn.Module, larger: nn.Module) -> Fit:
    """Compare a file's tensors with a student's, by name, shape and dtype.

    Args:
        network: the student; on any device.
        larger: the same with another number of classes: what differs is the classifier head.

    Raises:
        InvalidJob: the file is no safetensors; a tensor is missing, one is left over, one beside the head has another
            shape, or integers where the student has floating-point values, or the other way round; naming them.
    """
    shapes, dtypes = _stored(path)
    return with_dtypes(fit_shapes(shapes, shapes_of(network), shapes_of(larger)), dtypes, dtypes_of(network))


def shapes_of(network: nn.Module) -> Shapes:
    """Shapes of a network's state, by name, without counters."""
    return without_counters({name: tuple(x.shape) for name, x in network.state_dict().items()})


def dtypes_of(network: nn.Module) -> Dtypes:
    """Dtypes of a network's state by name, as safetensors calls them."""
    return {name: _NAMES.get(x.dtype, str(x.dtype)) for name, x in network.state_dict().items()}


def _stored(path: Path) -> tuple[Shapes, Dtypes]:
    """Shapes and dtypes of all tensors of a file, by name, from its header. Raises InvalidJob."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            shapes = {name: tuple(stored.get_shape()) for name, stored in slices.items()}
            return shapes, {name: stored.get_dtype() for name, stored in slices.items()}
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
            if name.endswith(VARIANCE) and (state[name] < 0).any():
                raise InvalidJob(f"weights {path.name!r} have values below 0 in {name!r}, which is a variance")
