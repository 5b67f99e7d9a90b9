"""Preprocessing: a teacher's float32 input from uint8 pictures, by the rules that its ``Preprocessing`` states.

First the picture as the network sees it, uint8 at the network's size (``fit``, ``fit_views``), then its numbers
(``normalise``).

Legend: B pictures of a batch, H x W pixels, C channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.augmentation.apply import apply, finish, resize
from workers.augmentation.draw import BOX_ROWS, ViewParameters
from workers.augmentation.mixing import mix_halves, split_mixed
from workers.augmentation.resampling import fit_pictures, resample_boxes
from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, ResizedCrop, is_mixed, without_mixing
from workers.errors import InvalidTeacher
from workers.onnx.checks.teacher_graph import TeacherGraph

Images = NDArray[np.uint8] | Tensor


def preprocess(
    images_BHWC: Images, preprocessing: Preprocessing, empty: Callable[..., NDArray[np.floating]] = np.empty
) -> NDArray[np.floating]:
    """Input for plain pictures: ``fit`` and ``normalise``."""
    return normalise(fit(torch.as_tensor(images_BHWC), preprocessing), preprocessing, empty)


def fit(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize plain pictures and crop their centre: uint8 [B, H, W, C] -> uint8 [B, h, w, C].

    Raises:
        InvalidTeacher: pictures with neither 1 nor 3 channels; the resized ones are smaller than the crop.
    """
    _check_channels(images_BHWC)
    if preprocessing.size is None:
        return images_BHWC
    if preprocessing.interpolation is None:
        return resize(images_BHWC, *preprocessing.size)
    return torch.from_numpy(fit_pictures(images_BHWC.numpy(), preprocessing))


def fit_views(
    images_BHWC: Tensor, recipe: Augmentation, parameters: ViewParameters, preprocessing: Preprocessing
) -> Tensor:
    """Make the views of the dataset's pictures as the teacher sees them: uint8 [B, H, W, C] -> uint8 [B, h, w, C].

    A box of ``resized_crop`` is resampled to the network's size once, with the teacher's interpolation, and nothing is
    cut off: it is the student's box. Views of all other recipes are as large as the pictures, so they are fitted as
    plain ones, the centre crop included; without augmentation they are plain ones.

    Args:
        images_BHWC: [2B, H, W, C] where the views are mixed, see ``draw.pictures_of``.
        recipe: of the teacher's views, see ``config.views.teacher_augmentation``.

    Raises:
        InvalidTeacher, InvalidDataset: as ``fit`` and ``apply``.
    """
    _check_channels(images_BHWC)
    if preprocessing.size is None or preprocessing.interpolation is None or not isinstance(recipe, ResizedCrop):
        return fit(apply(images_BHWC, recipe, parameters), preprocessing)
    table_PB, mixing_5B = torch.from_numpy(parameters.table()), None
    if is_mixed(recipe):
        table_PB, mixing_5B = split_mixed(table_PB)
    boxes_5B = table_PB[:BOX_ROWS].numpy()
    boxes = resample_boxes(images_BHWC.numpy(), boxes_5B, preprocessing.size, preprocessing.interpolation)
    views = finish(torch.from_numpy(boxes), without_mixing(recipe), table_PB)
    return views if mixing_5B is None else mix_halves(views, recipe, mixing_5B)


def normalise(
    images_BHWC: Tensor, preprocessing: Preprocessing, empty: Callable[..., NDArray[np.floating]] = np.empty
) -> NDArray[np.floating]:
    """Order channels, ``(x * scale - mean) / std``, lay out: uint8 [B, h, w, C] -> contiguous float32.

    Float32 throughout, one rounding per operation, so it equals the formula in NumPy bit for bit. Grey from colour
    is the luma of ITU-R BT.601 in the integer form that Pillow uses.

    Args:
        empty: makes the uninitialised array that is returned, of a shape and a ``dtype``.
    """
    images = _ordered_channels(images_BHWC, preprocessing.channels)
    per_channel = (1, -1, 1, 1) if preprocessing.layout == "nchw" else (1, 1, 1, -1)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(per_channel)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(per_channel)
    laid_out = images.permute(0, 3, 1, 2) if preprocessing.layout == "nchw" else images
    # NumPy asks for huge pages, torch does not: small ones took half of the processor time of a batch at 224 x 224.
    input_ = empty(laid_out.shape, dtype=np.float32)
    torch.from_numpy(input_).copy_(laid_out).mul_(preprocessing.scale).sub_(mean).div_(std)
    return input_


def network_input(
    fitted_BHWC: Tensor, preprocessing: Preprocessing, graph: TeacherGraph, empty: Callable[..., NDArray[Any]]
) -> NDArray[np.number]:
    """``normalise`` in the graph's dtype.

    Raises:
        InvalidTeacher: the pictures do not have the size that the graph wants.
    """
    input_ = normalise(fitted_BHWC, preprocessing, empty)
    height, width = input_.shape[2:] if preprocessing.layout == "nchw" else input_.shape[1:3]
    _, *wanted = graph.picture(preprocessing.layout)
    if any(size not in (None, have) for size, have in zip(wanted, (height, width), strict=True)):
        raise InvalidTeacher(
            f"the pictures are {height}x{width} pixels (height x width), the teacher wants "
            f"{'x'.join('?' if size is None else str(size) for size in wanted)}: set `size` in its preprocessing"
        )
    if input_.dtype == np.dtype(graph.inputs[0].dtype):
        return input_
    converted = empty(input_.shape, np.dtype(graph.inputs[0].dtype))
    # Bytes are whole numbers still, for ``check_bytes`` has let no scaling through.
    np.copyto(converted, input_, casting="unsafe" if graph.takes_bytes else "same_kind")
    return converted


def _check_channels(images_BHWC: Tensor) -> None:
    have = images_BHWC.shape[-1]
    if have not in (1, 3):
        raise InvalidTeacher(f"the pictures have {have} channels; a teacher takes grey (1) or colour (3) ones")


def _ordered_channels(images_BHWC: Tensor, channels: str) -> Tensor:
    have = images_BHWC.shape[-1]
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
