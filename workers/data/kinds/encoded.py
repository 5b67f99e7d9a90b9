"""Base of the dataset kinds whose pictures are encoded: JPEG, PNG ..., as files of their own or as bytes in others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from workers.data.dataset_kind import FilesBelowRoot, Option, Source
from workers.spec import Flag, Size

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.data.decoding.encoded_rows import EncodedRows
    from workers.events import ShouldStop, Split


class EncodedPictures(FilesBelowRoot, ABC):
    """Base of the kinds whose pictures are encoded; a kind says in ``encoded`` where they are.

    Attributes:
        image_size: (height, width) every picture is resized to; None demands that all have one size.
        on_bad_picture: ``refuse`` refuses a dataset with pictures that cannot be decoded, and names them; ``skip``
            leaves these out. A picture that the disk does not give, or of another size than the others, is refused
            all the same.
        exif_orientation: turn pictures upright as their EXIF data says; torchvision's ``ImageFolder`` does not.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **FilesBelowRoot.options,
        "image_size": Option("Resize the pictures to this.", "the pictures' own", "HEIGHT WIDTH"),
        "on_bad_picture": Option("Refuse a dataset with damaged pictures, or leave these out."),
        "exif_orientation": Option("Turn pictures upright as their EXIF data says, which ImageFolder does not."),
    }

    image_size: Size | None = None
    # Joined later, as ``Training.cuda_graph``.
    on_bad_picture: Literal["refuse", "skip"] = Field("refuse", exclude_if=lambda given: given == "refuse")
    exif_orientation: Flag = Field(False, exclude_if=lambda given: not given)

    @field_validator("image_size", mode="before")
    @classmethod
    def _is_pair(cls, given: object) -> object:
        if isinstance(given, int):
            raise ValueError(f"image_size is [height, width] in pixels, such as [{given}, {given}]")
        return given

    @property
    def resized_to(self) -> Size | None:
        """Value of ``image_size``."""
        return self.image_size

    @property
    def turns_upright(self) -> bool:
        """Value of ``exif_orientation``."""
        return self.exif_orientation

    @property
    def leaves_out(self) -> bool:
        """Whether ``on_bad_picture`` is ``skip``."""
        return self.on_bad_picture == "skip"

    @abstractmethod
    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List the encoded pictures of a split of what ``examine`` found, always in the same order."""

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in the order of ``encoded``. To leave pictures out, all are decoded once more before."""
        from workers.data.decoding.decode_encoded import decode_rows
        from workers.data.decoding.picture_decoder import PictureDecoder

        rows = self.encoded(source, split)
        first = rows if split == "train" else self.encoded(source, "train")
        decoder = PictureDecoder(self.image_size, self.exif_orientation)
        names = source.class_names or ()
        return decode_rows(rows, first, decoder, names, skips=self.leaves_out, should_stop=should_stop)


class EncodedFiles(EncodedPictures, ABC):
    """Base of the kinds whose pictures are files of their own.

    Attributes:
        storage: ``decoded`` keeps a decoded copy, which is mapped; ``files`` keeps none and decodes a picture whenever
            it is wanted, for data larger than memory or disk. Both give the same bits, and so the same caches and
            weights.
    """

    options: ClassVar[Mapping[str, Option]] = {
        **EncodedPictures.options,
        "storage": Option("Of image files: keep a decoded copy, or decode whenever needed."),
    }

    storage: Literal["decoded", "files"] = "decoded"

    @property
    def keeps_files(self) -> bool:
        """Whether ``storage`` is ``files``."""
        return self.storage == "files"

    def content_description(self) -> dict[str, object]:
        """Description without ``storage``."""
        return self.model_dump(mode="json", exclude={"storage"})
