"""Dataset of a job: one of the registered kinds, told apart by ``kind``."""

import functools
import operator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from workers.data.dataset_kind import DatasetKind
from workers.data.kinds.registry import kind_classes
from workers.spec import Size

if TYPE_CHECKING:
    # What the kinds have in common is all that code outside their files may use.
    DatasetSpec = DatasetKind
else:
    DatasetSpec = Annotated[functools.reduce(operator.or_, kind_classes()), Field(discriminator="kind")]


def thumbnail_warnings(dataset: DatasetSpec, size: Size | None) -> tuple[str, ...]:
    """Warn of a dataset stored smaller than the teacher's input, whose detail no view can have: one sentence, or none.

    Args:
        size: (height, width) in pixels of the teacher's preprocessing.
    """
    if size is None or dataset.resized_to is None:
        return ()
    (height, width), (wanted_h, wanted_w) = dataset.resized_to, size
    if height >= wanted_h and width >= wanted_w:
        return ()
    return (
        f"the dataset's image_size is {height} x {width} pixels (height x width), the teacher's input {wanted_h} x "
        f"{wanted_w}: the teacher is given pictures that were made smaller and then enlarged, whole ones and views "
        f"alike. If the files are larger, set image_size to [{wanted_h}, {wanted_w}] and "
        "make the students' views small with `size` of the recipe resized_crop",
    )
