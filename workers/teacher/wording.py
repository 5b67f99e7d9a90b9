"""Wording of messages about logits of a teacher, or of a file that is imported without one. Light: the API loads it."""

from typing import NamedTuple


class Wording(NamedTuple):
    """Words for the origin of logits, and next steps that are possible there.

    Attributes:
        who: the origin; its genitive has an ``'s``.
        values: what it gives.
        made_by: beginning of a sentence on the last operator.
        them: what that has made.
        name_classes, reorder, restate: next steps about its classes, and about the kind of its values.
        give_logits: next step where the values are no logits.
        its: in front of the name of a field.
    """

    who: str
    values: str
    made_by: str
    them: str
    name_classes: str
    reorder: str
    restate: str
    give_logits: str
    its: str


TEACHER = Wording(
    who="the teacher",
    values="outputs",
    made_by="the teacher ends in",
    them="its output",
    name_classes="Upload the teacher with its `class_names`",
    reorder="export the teacher with its outputs in the dataset's order",
    restate="upload it with the kind that they are, or without, and it is found by the values",
    give_logits=(
        "Export the logits, what goes into the last Sigmoid or Softmax, or name the output that holds them in the "
        "teacher's `output`; or state what they are in its `output_kind`"
    ),
    its="the teacher's ",
)
IMPORT = Wording(
    who="the file",
    values="values",
    made_by="the file has the outputs of",
    them="what that gave",
    name_classes="Import the file with `class_names`",
    reorder="write the file with its columns in the dataset's order",
    restate="import it with the kind that they are, or without, and it is found by the values",
    give_logits=(
        "Import the logits, what goes into the last Sigmoid or Softmax; or state what they are in `output_kind`"
    ),
    its="the import's ",
)
