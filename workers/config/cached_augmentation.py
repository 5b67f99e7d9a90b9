"""Augmentation in the specification of a cache: the recipe, and the holdout where views are mixed.

Rows that a job holds out of the training split for validation are no partners of a mixed view, for students would learn
from their pictures and labels. So jobs with another holdout have other mixed pictures, and another cache.
"""

from collections.abc import Mapping

from pydantic import JsonValue, TypeAdapter

from workers.config.views import Augmentation, is_mixed
from workers.data.preparation.holdout_spec import Holdout

_RECIPE: TypeAdapter[Augmentation] = TypeAdapter(Augmentation)
_HELD_OUT = "held_out"


def describe_augmentation(recipe: Augmentation, held_out: Holdout | None) -> dict[str, JsonValue]:
    """``augmentation`` of a specification."""
    described: dict[str, JsonValue] = recipe.model_dump(mode="json")
    if is_mixed(recipe) and held_out is not None:
        described[_HELD_OUT] = held_out.model_dump(mode="json")
    return described


def read_recipe(augmentation: Mapping[str, object]) -> Augmentation:
    """Recipe in the ``augmentation`` of a specification."""
    return _RECIPE.validate_python({name: value for name, value in augmentation.items() if name != _HELD_OUT})


def read_held_out(augmentation: Mapping[str, object]) -> Holdout | None:
    """Holdout in the ``augmentation`` of a specification; None if no row is held out of its mixed views."""
    found = augmentation.get(_HELD_OUT)
    return None if found is None else Holdout.model_validate(found)
