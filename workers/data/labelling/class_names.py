"""Class names of a dataset: at least two, valid UTF-8, and none that a reader may take for another."""

from collections.abc import Iterable
from pathlib import Path

from workers.errors import InvalidDataset
from workers.texts import code_points, composed, listed, shortened

NAME_MAX_CHARACTERS = 255  # as of a folder


def check_class_names(names: Iterable[str], path: Path) -> None:
    """Check the class names of a dataset at ``path``.

    Raises:
        InvalidDataset: fewer than two, one twice, or one that is too long, no text or looks like another.
    """
    names = list(names)
    if len(names) < 2 or len(set(names)) != len(names):
        raise InvalidDataset(
            f"{path} has the classes [{listed(map(repr, names))}]; at least two, all different, are needed"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidDataset(f"{path}: the class name {name!r} is not valid UTF-8") from error
        if len(name) > NAME_MAX_CHARACTERS:
            raise InvalidDataset(
                f"{path}: the class name {shortened(name, 80)!r} has {len(name)} characters, at most "
                f"{NAME_MAX_CHARACTERS} are allowed: shorten it"
            )
    check_told_apart(names, path)


def check_told_apart(names: Iterable[str], path: Path) -> None:
    """Raise InvalidDataset if two names are the same in Unicode's normal form C."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(composed(name), name)) != name:
            raise InvalidDataset(
                f"{path} has two classes that look the same, '{code_points(other)}' and '{code_points(name)}': "
                "rename one, or put their pictures together"
            )
