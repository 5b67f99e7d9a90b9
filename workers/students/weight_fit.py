"""Fit of stored weights to a student by names and shapes: all, but a classifier head of another size. Light."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from workers.errors import InvalidJob
from workers.texts import some_of

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


def without_counters(shapes: Shapes) -> Shapes:
    """The shapes without those of counters."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}


def fit_shapes(there: Shapes, own: Shapes, other: Shapes) -> Fit:
    """Compare the tensors of a file with a student's.

    Args:
        there: of the file.
        own: of the student.
        other: of the same student with another number of classes: what differs is the classifier head.

    Raises:
        InvalidJob: a tensor is missing, one is left over, or one beside the head has another shape; naming them.
    """
    there, own, other = map(without_counters, (there, own, other))
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
        f"{some_of([*map(repr, sorted(names))], _NAMED)} {what}"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"))
        if names
    ]
    mistakes += [
        f"{name!r} is {list(there[name])}, the student's {list(own[name])}" for name in sorted(unlike)[:_NAMED]
    ]
    if mistakes:
        raise InvalidJob(
            f"these weights are not of this student: {'; '.join(mistakes)}. Take a file of the same architecture and "
            "number of channels; only a classifier head may have another size"
        )
