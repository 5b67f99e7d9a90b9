"""Pictures that cannot be used: each by name with the reason, in messages in part, in the report of a dataset all.

Light: the API process reads reports.
"""

from collections.abc import Sequence
from typing import NamedTuple

from workers.errors import InvalidDataset

# Bad pictures that a message names.
NAMED_MAX = 10


class BadPicture(NamedTuple):
    """A picture that cannot be used.

    Attributes:
        row: its place among the encoded pictures of its split.
        name: its sample id.
        reason: in words that follow the name in a sentence.
        place: a name for messages, such as the path of a file.
        is_damaged: whether its content is at fault, and not that of the others (another size) or the disk.
    """

    row: int
    name: str
    reason: str
    place: str
    is_damaged: bool = True


class BadPictures(InvalidDataset):
    """Pictures cannot be used; the message names ten at most, ``bad`` holds all of ``pictures``, in order."""

    def __init__(self, bad: Sequence[BadPicture], pictures: int) -> None:
        self.bad, self.pictures = tuple(bad), pictures
        sentences = [f"{each.place} {each.reason}" for each in self.bad[:NAMED_MAX]]
        more = f"; and {len(self.bad) - NAMED_MAX} more" if len(self.bad) > NAMED_MAX else ""
        message = f"{len(self.bad)} of {pictures} pictures cannot be used: {'; '.join(sentences)}{more}"
        super().__init__(sentences[0] if len(self.bad) == 1 else message)

    def __reduce__(self) -> tuple[type[InvalidDataset], tuple[str]]:
        """Pickles as its message."""
        return InvalidDataset, (str(self),)
