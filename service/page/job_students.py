"""Students of the job form, as they are posted."""

from collections.abc import Mapping, Sequence
from typing import Any


def students_of(names: Sequence[str], given: Sequence[Any]) -> list[Any]:
    """Students by these names: as they were given (with first weights, say), or the bare name."""
    described = {each["name"]: each for each in given if isinstance(each, Mapping)}
    return [described.get(name, name) for name in names]
