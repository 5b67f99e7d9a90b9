"""A job's dataset."""

from typing import Annotated, Literal

from pydantic import Field

from workers.spec import RelativePath, Size, Spec

# The class of scikit-learn's digits with the fewest training pictures, the eights, has so many.
DIGITS_PER_CLASS_MAX = 140


class DigitsDataset(Spec):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; every fifth of each class is the test split.

    Attributes:
        train_per_class: train on the first so many pictures of each class; None is all of them, 1,442 in the ten
            classes. The test split stays whole.
    """

    kind: Literal["digits"] = "digits"
    # Joined later, as ``Training.cuda_graph``.
    train_per_class: Annotated[int, Field(strict=True, ge=1, le=DIGITS_PER_CLASS_MAX)] | None = Field(
        None, exclude_if=lambda given: given is None
    )


class TorchvisionDataset(Spec):
    """A torchvision data set from local files below the data root; nothing is downloaded."""

    kind: Literal["cifar10", "cifar100", "mnist", "fashion_mnist"]
    path: RelativePath = "."


class FolderDataset(Spec):
    """``path/train/CLASS/*.jpg`` (or png ...) and ``path/test/CLASS/*``; classes alphabetically.

    Attributes:
        image_size: (height, width) every picture is resized to; None demands that all have one
        size.
        storage: ``decoded`` keeps a decoded copy, which is mapped; ``files`` keeps none and decodes a
        picture whenever it is wanted, for data larger than memory or disk. Both give the same bits,
        and so the same caches and weights.
    """

    kind: Literal["folder"] = "folder"
    path: RelativePath
    image_size: Size | None = None
    storage: Literal["decoded", "files"] = "decoded"


class NpzDataset(Spec):
    """One ``.npz`` of ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Images are uint8 [N, H, W] or [N, H, W, C], labels integers [N], ``class_names`` (optional) strings.
    """

    kind: Literal["npz"] = "npz"
    path: RelativePath


DatasetSpec = Annotated[DigitsDataset | TorchvisionDataset | FolderDataset | NpzDataset, Field(discriminator="kind")]


def thumbnail_warnings(dataset: DatasetSpec, size: Size | None) -> tuple[str, ...]:
    """A sentence if a data set is stored smaller than the teacher's input, so that no view can have its detail.

    Args:
        size: (height, width) in pixels of the teacher's preprocessing.
    """
    if size is None or not isinstance(dataset, FolderDataset) or dataset.image_size is None:
        return ()
    (height, width), (wanted_h, wanted_w) = dataset.image_size, size
    if height >= wanted_h and width >= wanted_w:
        return ()
    return (
        f"the data set's image_size is {height} x {width} pixels (height x width), the teacher's input {wanted_h} x "
        f"{wanted_w}: the teacher is given pictures that were made smaller and then enlarged, whole ones and views "
        f"alike. If the files are larger, set image_size to [{wanted_h}, {wanted_w}] and "
        "make the students' views small with `size` of the recipe resized_crop",
    )
