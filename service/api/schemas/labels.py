"""Documents of what is known of a dataset's labels and classes before a job is posted."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document

NAMES_MAX = 100


class LabelsPreview(Document):
    """Labels and classes of a job's dataset, as its files show them."""

    labelled: dict[str, int] = Field(description="pictures that have a label, by split")
    classes: int = Field(description="number of classes")
    class_names: list[str] | None = Field(
        description=f"in the order of labels, the first {NAMES_MAX}; null where only decoding tells"
    )
    named_by: Literal["dataset", "teacher"] = Field(
        description="`teacher`: nothing but the number of its outputs tells the classes, which are numbered"
    )
