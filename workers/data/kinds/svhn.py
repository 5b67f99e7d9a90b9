"""SVHN, cropped digits, from its published .mat files. Nothing is downloaded.

Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning". The published label of the
digit 0 is 10; here it is 0, as in torchvision.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from workers.data.confinement import inside, root_folder
from workers.data.dataset_kind import FilesBelowRoot, Source
from workers.errors import InvalidDataset
from workers.spec import RelativePath, Size
from workers.texts import shortened

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.events import ShouldStop, Split

# As published: the API process, which loads no scipy, cannot count them.
SAMPLES: "dict[Split, int]" = {"train": 73_257, "test": 26_032}
_NAMES = tuple("0123456789")


class SvhnDataset(FilesBelowRoot):
    """``train_32x32.mat`` and ``test_32x32.mat``: X uint8 [32, 32, 3, N], y [N, 1] with 10 for the digit 0."""

    kinds: ClassVar[Mapping[str, str]] = {"svhn": "`train_32x32.mat` and `test_32x32.mat`, as published"}
    sought: ClassVar[str] = "SVHN"
    # Digits are not to be mirrored.
    recipes: ClassVar[Mapping[str, str]] = {"svhn": "mnist"}

    kind: Literal["svhn"] = "svhn"
    path: RelativePath = "."

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with the training file."""
        if (entry / "train_32x32.mat").is_file():
            yield cls(path=name)

    @property
    def picture_size(self) -> Size:
        """32 x 32 pixels."""
        return 32, 32

    def examine(self, data_root: Path) -> Source:
        """Look for the files; none is read."""
        path, root = self.resolve(data_root), root_folder(data_root)
        files = {split: path / f"{split}_32x32.mat" for split in SAMPLES}
        missing = [file.name for file in files.values() if not inside(file, root).is_file()]
        if missing:
            raise InvalidDataset(
                f"svhn needs the published files train_32x32.mat and test_32x32.mat in {path}; missing: "
                f"{', '.join(missing)}"
            )
        return Source(
            spec=self,
            path=path,
            samples=dict(SAMPLES),
            classes=10,
            class_names=_NAMES,
            files={split: (file,) for split, file in files.items()},
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Read a file whole, 225 MB of the larger one, in the published order."""
        import numpy as np
        from scipy.io import loadmat

        from workers.data.decoding.blocks import from_array

        path = source.files[split][0]
        try:
            arrays = loadmat(path, variable_names=["X", "y"])
            images, labels = arrays["X"], arrays["y"].reshape(-1).astype(np.int64)
        except MemoryError:
            raise
        except Exception as error:
            # A damaged file makes scipy raise nearly anything.
            raise InvalidDataset(f"{path} cannot be read as the published .mat file: {shortened(error)}") from error
        count = SAMPLES[split]
        is_published = images.shape == (32, 32, 3, count) and images.dtype == np.uint8 and labels.shape == (count,)
        if not is_published or labels.min() < 1 or labels.max() > 10:
            raise InvalidDataset(
                f"{path} holds X {images.dtype} {list(images.shape)} and {len(labels)} labels; the published file has "
                f"uint8 [32, 32, 3, {count}] and labels 1 to 10: get it again"
            )
        return from_array(images.transpose(3, 0, 1, 2), labels % 10, _NAMES, should_stop)
