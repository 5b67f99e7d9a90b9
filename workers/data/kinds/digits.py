"""scikit-learn's handwritten digits, which are package data.

``digits.npz`` holds uint8 images [1797, 8, 8], scaled from 0..16 to 0..255 and rounded half up, and uint8 labels [1797]
in the published order. It is made by, with scikit-learn 1.9.1::

    python -c "import numpy as np; from sklearn.datasets import load_digits; d = load_digits(); np.savez_compressed(
    'digits.npz', images=((d.images.astype(int) * 255 + 8) // 16).astype('u1'), labels=d.target.astype('u1'))"

Licence and authors: ``digits.LICENSE.txt``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from workers.data.dataset_kind import DatasetKind, Option, Source
from workers.spec import Size

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.events import ShouldStop, Split

FILE = Path(__file__).with_suffix(".npz")
CLASS_NAMES = tuple("0123456789")
# The class with the fewest training pictures, the eights, has so many.
PER_CLASS_MAX = 140
# Of scikit-learn. Another one would decode the same pictures anew, and forget those that are decoded.
_RELEASE = "1.9.1"


class DigitsDataset(DatasetKind):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; every fifth of each class is the test split.

    Attributes:
        train_per_class: train on the first so many pictures of each class; None is all of them, 1,442 in the ten
            classes. The test split stays whole.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "digits": "nothing: scikit-learn's 1,797 handwritten digits, 8 x 8, every fifth of each class for test"
    }
    options: ClassVar[Mapping[str, Option]] = {
        "train_per_class": Option("Of the digits: train on the first so many pictures of each class.", unset="all")
    }
    recipes: ClassVar[Mapping[str, str]] = {"digits": "digits"}

    kind: Literal["digits"] = "digits"
    # Joined later, as ``Training.cuda_graph``.
    train_per_class: Annotated[int, Field(strict=True, ge=1, le=PER_CLASS_MAX)] | None = Field(
        None, exclude_if=lambda given: given is None
    )

    @property
    def picture_size(self) -> Size:
        """8 x 8 pixels."""
        return 8, 8

    def examine(self, data_root: Path) -> Source:
        """Describe the package data; no file is looked for."""
        # Per class, sample 4, 9, 14, ... is test: 355 of 1,797.
        return Source(
            spec=self,
            path=None,
            samples={"train": 10 * self.train_per_class if self.train_per_class else 1442, "test": 355},
            classes=10,
            class_names=CLASS_NAMES,
            files={"train": (), "test": ()},
            release=_RELEASE,
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Read the package data, in the published order."""
        import numpy as np

        from workers.data.decoding.blocks import from_array

        with np.load(FILE, allow_pickle=False) as arrays:
            images, labels = arrays["images"][..., None], arrays["labels"].astype(np.int64)
        # Every fifth of each class, not every fifth of all: the file mostly runs 0, 1, ..., 9 again and
        # again, so the latter would be a test split of fours and nines.
        is_test = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            is_test[np.flatnonzero(labels == label)[4::5]] = True
        chosen = is_test if split == "test" else ~is_test
        if split == "train" and self.train_per_class is not None:
            for label in range(10):
                chosen[np.flatnonzero(chosen & (labels == label))[self.train_per_class :]] = False
        return from_array(images[chosen], labels[chosen], CLASS_NAMES, should_stop)
