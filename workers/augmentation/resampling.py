"""Resizing as Pillow does it: pictures and views for a teacher whose preprocessing names an interpolation.

It is Pillow that resizes, picture by picture on the host, so a teacher is given the bits that torchvision, timm and
Hugging Face's processors make of a picture in its evaluation, and the same on every machine: Pillow's filters are
integer arithmetic with 22 bits. Without a name pictures are resized by ``apply.resize``, the student's own way.

Legend: B pictures of a batch, H x W pixels in, h x w pixels out, C channels.
"""

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints
from workers.augmentation.draw import BOX_ROWS, ViewParameters
from workers.augmentation.single import apply_single, finish_single, mix_single, resize_single
from workers.config.teacher import Interpolation, Preprocessing
from workers.config.views import Augmentation, ResizedCrop
from workers.errors import InvalidTeacher
from workers.spec import Size

Pictures = NDArray[np.uint8]


def fit_picture(picture_HWC: Pictures, preprocessing: Preprocessing) -> Pictures:
    """Resize a plain picture and crop its centre, uint8 [H, W, C] -> uint8 [h, w, C].

    Raises:
        InvalidTeacher: what it is resized to is smaller than the crop.
    """
    size = preprocessing.size
    if size is None:
        return picture_HWC
    if preprocessing.interpolation is None:
        return resize_single(picture_HWC, *size)
    whole = resized_size(preprocessing, *picture_HWC.shape[:2])
    if any(have < wanted for have, wanted in zip(whole, size, strict=True)):
        raise InvalidTeacher(
            f"pictures of {picture_HWC.shape[0]} x {picture_HWC.shape[1]} pixels (height x width) become {whole[0]} x "
            f"{whole[1]} by resize {preprocessing.resize}, and {size[0]} x {size[1]} cannot be cut out of that: give "
            "the teacher a larger `resize` or a smaller `size`"
        )
    # As torchvision's ``CenterCrop``, which rounds a half to the even number.
    top, left = (round((have - wanted) / 2) for have, wanted in zip(whole, size, strict=True))
    resized = resample(picture_HWC, whole, preprocessing.interpolation)
    return resized[top : top + size[0], left : left + size[1]]


def fit_pictures(pictures_BHWC: Pictures, preprocessing: Preprocessing) -> Pictures:
    """``fit_picture`` of each picture of a batch, uint8 [B, h, w, C]; ``size`` is given."""
    assert preprocessing.size is not None
    fitted = np.empty((len(pictures_BHWC), *preprocessing.size, pictures_BHWC.shape[3]), dtype=np.uint8)
    for into, picture in zip(fitted, pictures_BHWC, strict=True):
        into[...] = fit_picture(picture, preprocessing)
    return fitted


def fit_view(
    picture_HWC: Pictures,
    recipe: Augmentation,
    parameters: ViewParameters,
    preprocessing: Preprocessing,
    *,
    other_HWC: Pictures | None = None,
) -> Pictures:
    """Make a view of one picture as the teacher sees it, uint8 [h, w, C], as ``teacher.preprocess.fit_views`` does.

    Args:
        other_HWC: the picture that a mixed view is mixed with.
    """
    size, interpolation = preprocessing.size, preprocessing.interpolation
    if size is None or interpolation is None or not isinstance(recipe, ResizedCrop):
        return fit_picture(apply_single(picture_HWC, recipe, parameters, other_HWC), preprocessing)

    def of_one(image_HWC: Pictures, drawn: ViewParameters) -> Pictures:
        boxes = resample_boxes(image_HWC[None], drawn.table()[:BOX_ROWS], size, interpolation)
        return finish_single(boxes[0], recipe, drawn)

    own = of_one(picture_HWC, parameters)
    if parameters.mixing is None or parameters.other is None:
        return own
    assert other_HWC is not None
    return mix_single(own, of_one(other_HWC, parameters.other), parameters.mixing)


def resized_size(preprocessing: Preprocessing, height: int, width: int) -> Size:
    """(height, width) to which a picture of H x W pixels is resized before the crop."""
    match preprocessing.resize or preprocessing.size or (height, width):
        case int() as side:
            # As torchvision: the longer side is rounded down.
            return (side, side * width // height) if height <= width else (side * height // width, side)
        case size:
            return size


def resample_boxes(pictures_BHWC: Pictures, boxes_5B: Ints, size: Size, interpolation: Interpolation) -> Pictures:
    """Cut out the box of each picture, resize it to ``size`` and mirror it, uint8 [B, h, w, C].

    As torchvision's ``RandomResizedCrop``: pixels beyond a box have no part in it.

    Args:
        boxes_5B: the first rows of a ``ViewParameters.table``.
    """
    made = np.empty((len(pictures_BHWC), *size, pictures_BHWC.shape[3]), dtype=np.uint8)
    for into, picture, box in zip(made, pictures_BHWC, boxes_5B.T.tolist(), strict=True):
        top, left, height, width, flip = box
        resized = resample(picture[top : top + height, left : left + width], size, interpolation)
        into[...] = resized[:, ::-1] if flip else resized
    return made


def resample(picture_HWC: Pictures, size: Size, interpolation: Interpolation) -> Pictures:
    """Pillow's ``Image.resize``, uint8 [H, W, 1 or 3] -> uint8 [h, w, 1 or 3]; smooths where it makes smaller."""
    # Not every process that makes views has Pillow, or wants to wait for it.
    from PIL import Image

    image = Image.fromarray(picture_HWC[..., 0] if picture_HWC.shape[2] == 1 else picture_HWC)
    resized = image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
    return np.asarray(resized).reshape(*size, picture_HWC.shape[2])
