"""Checks of a job's methods against its views: enough of them, second views that are seen, labels of mixed pictures."""

from collections.abc import Iterable, Sequence

from workers.config.views import Views, has_second_view, is_mixed
from workers.errors import InvalidJob
from workers.methods.catalog import MethodChoice
from workers.methods.combined import PRESETS


def check_views(methods: Sequence[MethodChoice], views: Views) -> None:
    """Refuse methods that these views do not serve, and second views that none of them would see.

    Raises:
        InvalidJob: naming the method.
    """
    for method in methods:
        if method.expand().views > views.count:
            raise InvalidJob(
                f"method {method.label!r} compares two views of each sample, and views.count is "
                f"{views.count}: use 2 or more, with the recipe crop_flip or resized_crop"
            )
    if methods and has_second_view(views.augmentation) and all(method.expand().views == 1 for method in methods):
        raise InvalidJob(
            "views.augmentation has a second_view, which methods that compare two views of a sample see alone, and "
            f"{_listed(method.label for method in methods)} see one: leave second_view out, or take one of "
            f"{_listed(_of_two_views())}"
        )
    if is_mixed(views.augmentation):
        _check_mixed(methods, views)


def _check_mixed(methods: Iterable[MethodChoice], views: Views) -> None:
    mixing = " and ".join(name for name in ("mixup", "cutmix") if getattr(views.augmentation, name) is not None)
    for method in methods:
        if readers := method.expand().one_label_readers:
            raise InvalidJob(
                f"method {method.label!r}: its distillation needs the one true class of each picture "
                f"({' and '.join(readers)}), and views.augmentation has {mixing}, whose pictures have two classes with "
                f"a share each: leave {mixing} out, or take methods that do without: {_listed(_for_mixed_views())}"
            )


def _of_two_views() -> list[str]:
    return [name for name, cls in PRESETS.items() if name != "custom" and cls().expand().views == 2]


def _for_mixed_views() -> list[str]:
    return [name for name, cls in PRESETS.items() if name != "custom" and not cls().expand().one_label_readers]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
