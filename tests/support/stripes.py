"""A dataset kind that nothing else knows, registered when this module is imported, and where it has to be found.

``tests/repository/test_dataset_kinds.py`` runs these tests in a process that imports this module before all else, as
the registry's own modules are imported.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.dataset_kind import FilesBelowRoot, Option, Source
from workers.data.kinds.registry import KINDS
from workers.errors import InvalidDataset
from workers.spec import Size

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.events import ShouldStop, Split


class StripesDataset(FilesBelowRoot):
    """A file whose text is the number of classes; pictures are 8x8, striped, one grey per class."""

    kinds: ClassVar[Mapping[str, str]] = {"stripes": "one file `*.stripes`: the number of classes"}
    options: ClassVar[Mapping[str, Option]] = {
        **FilesBelowRoot.options,
        "repeats": Option("Of stripes: pictures of each class.", "two"),
    }
    sought: ClassVar[str] = "files of stripes"

    kind: Literal["stripes"] = "stripes"
    repeats: Annotated[int, Field(strict=True, ge=1)] | None = None

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        if entry.suffix == ".stripes":
            yield cls(path=name)

    @property
    def picture_size(self) -> Size:
        return 8, 8

    def examine(self, data_root: Path) -> Source:
        path = self.resolve(data_root)
        if not path.read_text().isdigit():
            raise InvalidDataset(f"{path} holds no number of classes")
        classes = int(path.read_text())
        return Source(
            spec=self,
            path=path,
            samples=dict.fromkeys(("train", "test"), classes * (self.repeats or 2)),
            classes=classes,
            class_names=tuple(f"grey {label}" for label in range(classes)),
            files=dict.fromkeys(("train", "test"), (path,)),
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        import numpy as np

        from workers.data.decoding.blocks import from_array

        labels = np.tile(np.arange(source.classes, dtype=np.int64), self.repeats or 2)
        images = np.zeros((len(labels), 8, 8, 1), np.uint8)
        images[:, ::2] = labels[:, None, None, None]
        return from_array(images, labels, source.class_names or (), should_stop)


KINDS["stripes"] = StripesDataset
