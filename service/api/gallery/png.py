"""Pictures as PNG. Pillow, which the extra ``page`` brings, is loaded when the first one is asked for."""

import io

from service.errors import NotInstalled
from workers.augmentation.single import Picture


def check_installed() -> None:
    """Raise NotInstalled unless pictures can be decoded and written."""
    try:
        import simplejpeg  # noqa: F401  # decodes the pictures that stay files
        from PIL import Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalled("pictures need", str(error.name), "page") from error


def to_png(pixels_HWC: Picture, side: int) -> bytes:
    """Encode uint8 [H, W, 1 or 3] as PNG, shrunk with its proportions so that no side is longer than ``side`` pixels.

    Smaller pictures stay as they are: a browser enlarges without more bytes.
    """
    from PIL import Image

    image = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
