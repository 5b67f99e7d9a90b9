"""Checks of a job's methods against its views: enough of them, labels of mixed pictures, second views that are seen."""

from collections.abc import Iterable, Sequence

from workers.config.views import Views, has_second_view, is_mixed
from workers.errors import InvalidJob
from workers.methods.catalog import MethodChoice
from workers.methods.combined import PRESETS


def check_views(methods: Sequence[MethodChoice], views: Views) -> None:
    """Refuse methods that these views do not serve.

    Raises:
        InvalidJob: naming the method.
    """
    for method in methods:
        if method.expand().views > views.count:
            raise InvalidJob(
                f"method {method.label!r} compares two views of each sample, and views.count is "
                f"{views.count}: use 2 or more, with the recipe crop_flip or resized_crop"
            )
    if is_mixed(views.augmentation):
        _check_mixed(methods, views)


def second_view_warnings(methods: Sequence[MethodChoice], views: Views) -> tuple[str, ...]:
    """Say that no method sees the second views: one sentence, or none."""
    if not has_second_view(views.augmentation) or any(method.expand().views > 1 for method in methods):
        return ()
    return (
        f"views.augmentation has a second_view, and no method compares two views of a sample: {views.count // 2} of "
        f"{views.count} cached views are seen by no run; leave second_view out, or take {' or '.join(_of_two_views())}",
    )


def _check_mixed(methods: Iterable[MethodChoice], views: Views) -> None:
    mixing = " and ".join(name for name in ("mixup", "cutmix") if getattr(views.augmentation, name) is not None)
    for method in methods:
        if readers := method.expand().one_label_readers:
            raise InvalidJob(
                f"method {method.label!r}: its distillation needs the one true class of each picture "
                f"({' and '.join(readers)}), and views.augmentation has {mixing}, whose pictures have two classes with "
                f"a share each: leave {mixing} out, or take methods that do without: {', '.join(_for_mixed_views())}"
            )


def _of_two_views() -> list[str]:
    return [name for name, cls in PRESETS.items() if name != "custom" and cls().expand().views == 2]


def _for_mixed_views() -> list[str]:
    return [name for name, cls in PRESETS.items() if name != "custom" and not cls().expand().one_label_readers]
