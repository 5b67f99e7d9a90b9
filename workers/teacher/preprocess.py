"""Preprocessing: a teacher's float32 input from uint8 pictures, by the rules that its ``Preprocessing`` states.

Legend: B pictures of a batch, H x W pixels, C channels.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.augmentation.apply import resize
from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher

Images = NDArray[np.uint8] | Tensor


def preprocess(
    images_BHWC: Images, preprocessing: Preprocessing, empty: Callable[..., NDArray[np.floating]] = np.empty
) -> NDArray[np.floating]:
    """Resize, order channels, ``(x * scale - mean) / std``, lay out: uint8 [B, H, W, C] -> contiguous float32.

    Float32 throughout, one rounding per operation, so it equals the formula in NumPy bit for bit. Grey from colour
    is the luma of ITU-R BT.601 in the integer form that Pillow uses.

    Args:
        empty: makes the uninitialised array that is returned, of a shape and a ``dtype``.

    Raises:
        InvalidTeacher: pictures with neither 1 nor 3 channels.
    """
    images = torch.as_tensor(images_BHWC)
    if preprocessing.size is not None:
        images = resize(images, *preprocessing.size)
    images = _ordered_channels(images, preprocessing.channels)
    per_channel = (1, -1, 1, 1) if preprocessing.layout == "nchw" else (1, 1, 1, -1)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(per_channel)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(per_channel)
    laid_out = images.permute(0, 3, 1, 2) if preprocessing.layout == "nchw" else images
    # NumPy asks for huge pages, torch does not: small ones took half of the processor time of a batch at 224 x 224.
    input_ = empty(laid_out.shape, dtype=np.float32)
    torch.from_numpy(input_).copy_(laid_out).mul_(preprocessing.scale).sub_(mean).div_(std)
    return input_


def _ordered_channels(images_BHWC: Tensor, channels: str) -> Tensor:
    have = images_BHWC.shape[-1]
    if have not in (1, 3):
        raise InvalidTeacher(f"the pictures have {have} channels; a teacher takes grey (1) or colour (3) ones")
    if channels == "gray":
        return images_BHWC if have == 1 else _luma(images_BHWC)
    if have == 1:
        return images_BHWC.expand(-1, -1, -1, 3)
    return images_BHWC.flip(-1) if channels == "bgr" else images_BHWC


def _luma(rgb_BHWC: Tensor) -> Tensor:
    # 0.299 R + 0.587 G + 0.114 B in units of 2**-16, as Pillow's L conversion.
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)
    summed = (rgb_BHWC.to(torch.int32) * weights).sum(-1, keepdim=True)
    return ((summed + 0x8000) >> 16).to(torch.uint8)
