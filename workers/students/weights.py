"""Initial weights of a student from a safetensors file: all of it, but a classifier head of another size."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from workers.errors import InvalidJob

Shapes = Mapping[str, tuple[int, ...]]
_NAMED = 8
# Of batch normalisation: a number that nothing reads, and that older files lack.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """Fit of a file of weights to a student.

    Attributes:
        taken: names of the tensors that it gives.
        head: of those of the classifier head, if it has another size and begins as it is drawn.
        summary: the same in words.
    """

    taken: tuple[str, ...]
    head: tuple[str, ...]
    summary: str


def fit_weights(path: Path, network: nn.Module, larger: nn.Module) -> Fit:
    """Compare a file's tensors with a student's, by name and shape.

    Args:
        network: the student; on any device.
        larger: the same with another number of classes: what differs is the classifier head.

    Raises:
        InvalidJob: the file is no safetensors; a tensor is missing, one is left over, or one beside the head has
            another shape; naming them.
    """
    there, own, other = tensor_shapes(path), shapes_of(network), shapes_of(larger)
    head = {name for name, shape in own.items() if other[name] != shape}
    unlike = {name for name in own.keys() & there.keys() if own[name] != there[name]}
    _refuse_others(own, there, unlike - head)
    replaced = tuple(sorted(head)) if unlike else ()
    taken = tuple(sorted(own.keys() - set(replaced)))
    if not replaced:
        return Fit(taken, replaced, f"{len(taken)} tensors, the classifier head included")
    sizes = ", ".join(f"{name} {list(there[name])} -> {list(own[name])}" for name in replaced)
    summary = f"{len(taken)} tensors; the classifier head has another size and begins at random: {sizes}"
    return Fit(taken, replaced, summary)


def _refuse_others(own: Shapes, there: Shapes, unlike: Collection[str]) -> None:
    """Raises InvalidJob where names or shapes are others; of a head these may be."""
    missing, unexpected = own.keys() - there.keys(), there.keys() - own.keys()
    mistakes = [
        f"{_listed(names)} {what}" for names, what in ((missing, "missing"), (unexpected, "unexpected")) if names
    ]
    mistakes += [
        f"{name!r} is {list(there[name])}, the student's {list(own[name])}" for name in sorted(unlike)[:_NAMED]
    ]
    if mistakes:
        raise InvalidJob(
            f"these weights are not of this student: {'; '.join(mistakes)}. Take a file of the same architecture and "
            "number of channels; only a classifier head may have another size"
        )


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(map(repr, found[:_NAMED]))}{more}"


def shapes_of(network: nn.Module) -> Shapes:
    """Shapes of a network's state, by name, without counters."""
    return {name: tuple(x.shape) for name, x in network.state_dict().items() if not name.endswith(_COUNTER)}


def tensor_shapes(path: Path) -> Shapes:
    """Shapes of all tensors of a file, by name, without counters, from its header.

    Raises:
        InvalidJob: it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(_COUNTER)]  # noqa: SIM118  # it is no mapping
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise InvalidJob(f"weights {path.name!r} are no safetensors file: {error}") from error


def load_weights(path: Path, network: nn.Module, fit: Fit) -> None:
    """Copy what fits into the network, on whatever device and in whatever dtype it is."""
    state = network.state_dict()
    with torch.no_grad(), safe_open(path, framework="pt") as file:
        for name in fit.taken:
            state[name].copy_(file.get_tensor(name))
