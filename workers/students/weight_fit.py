"""Fit of stored weights to a student by names, shapes and dtypes: all, but a head of another size. Light."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from workers.errors import InvalidJob
from workers.students.safetensors_header import FLOATS
from workers.texts import some_of

Shapes = Mapping[str, tuple[int, ...]]
# By name; safetensors' names of dtypes.
Dtypes = Mapping[str, str]
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


def with_dtypes(fit: Fit, there: Dtypes, own: Dtypes) -> Fit:
    """The fit with a word on the tensors that are converted to the student's dtype.

    Args:
        there: of the file.
        own: of the student.

    Raises:
        InvalidJob: integers where the student has floating-point values, or the other way round, or other integers;
            naming them.
    """
    unlike = [name for name in fit.taken if there[name] != own[name]]
    wrong = [name for name in unlike if not {there[name], own[name]} <= {*FLOATS}]
    if wrong:
        listed = ", ".join(f"{name!r} is {there[name]}, the student's {own[name]}" for name in wrong[:_NAMED])
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise InvalidJob(
            f"these weights are not of this student: {listed}{more}. Floating-point tensors take {', '.join(FLOATS)}, "
            "and tensors of integers their own dtype: save the state_dict of the network itself, not quantised"
        )
    if not unlike:
        return fit
    dtypes = ", ".join(sorted({f"{there[name]} to {own[name]}" for name in unlike}))
    return replace(fit, summary=f"{fit.summary}; {len(unlike)} of them are converted, {dtypes}")


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
