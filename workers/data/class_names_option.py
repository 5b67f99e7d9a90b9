"""Field ``class_names`` of dataset kinds whose pictures need have no labels. It loads no numpy, as the kinds."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from workers.data.dataset_kind import Option
from workers.errors import InvalidDataset
from workers.spec import AtMost
from workers.texts import composed, listed

if TYPE_CHECKING:
    from workers.events import Split

_CLASSES_MAX, _CHARACTERS_MAX = 100_000, 255


def _split(value: object) -> object:
    """Accept names separated by commas, as the command line gives them."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


_Name = Annotated[str, Field(min_length=1, max_length=_CHARACTERS_MAX)]
ClassNames = Annotated[tuple[_Name, ...], Field(min_length=2), AtMost(_CLASSES_MAX), BeforeValidator(_split)]
OPTION = Option("Names of the classes in the order of the teacher's outputs.", "as files tell, or numbers", "NAME,...")


def choose_names(given: Sequence[str] | None, found: "Mapping[Split, Collection[str]]", path: Path) -> tuple[str, ...]:
    """Class names of a dataset whose training pictures have no labels, or not all of them.

    Args:
        given: the description's ``class_names``; they win, for they state an order.
        found: classes of each split that has labelled pictures, as folders name them.

    Returns:
        The given names; else those of the test or validation split, sorted; else those of train; empty if none tells.

    Raises:
        InvalidDataset: a split has a class that is not among them.
    """
    measured = next((found[split] for split in ("test", "validation") if found.get(split)), None)
    names = tuple(given) if given else tuple(sorted(measured or found.get("train", ())))
    known = set(map(composed, names))
    for split, classes in found.items():
        unknown = sorted(name for name in classes if composed(name) not in known)
        if unknown:
            source = "class_names" if given else "the labelled test or validation split"
            raise InvalidDataset(
                f"{path}: the {split} split has the classes {listed(unknown)}, which {source} "
                f"({listed(names)}) lacks: add them there, or correct the folders"
            )
    return names
