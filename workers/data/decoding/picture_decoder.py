"""Decoder of a dataset's encoded pictures, by the dataset's fields. Light until it decodes.

Legend: H x W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

from workers.data.decoding.blocks import Pictures


@dataclass(frozen=True)
class PictureDecoder:
    """Decoder of a dataset's encoded pictures.

    Attributes:
        image_size: (height, width) in pixels that pictures are resized to; None leaves them.
        exif_orientation: turn pictures upright, as their EXIF data says.
    """

    image_size: tuple[int, int] | None = None
    exif_orientation: bool = False

    def decode(self, data: bytes, place: Path | str) -> Pictures:
        """Decode a picture: uint8 [H, W, 3].

        Raises:
            InvalidDataset: as ``pictures.decode_picture``; the message begins with ``place``.
        """
        # Here, for a process that opens datasets without decoding any may lack the decoders' packages.
        from workers.data.decoding.pictures import decode_picture

        return decode_picture(data, place, self.image_size, exif_orientation=self.exif_orientation)
