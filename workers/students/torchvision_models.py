"""torchvision's classifiers as students: random weights, logits only, any number of channels.

No pretrained weights are ever loaded: nothing is downloaded, and a student starts from its seed.
Auxiliary classifiers (GoogLeNet, Inception v3) are left out, so that every forward pass returns one
tensor of logits.
"""

import torch
from torch import nn

from workers.errors import InvalidJob

# The two with auxiliary heads also warn that a default will change, unless ``init_weights`` is given.
_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
_RGB = 3


def build_torchvision(
    name: str, classes: int, in_channels: int, image_side: int, drop_path: float | None = None
) -> nn.Module:
    """A torchvision classifier with random weights.

    Args:
        name: torchvision's own, without the catalog's prefix.
        classes: C.
        in_channels: of the images.
        image_side: in pixels; the vision transformers are made for exactly this height and width.
        drop_path: torchvision's ``stochastic_depth_prob``; None is the network's own.

    Returns:
        A network from float32 [B, in_channels, H, W] to logits [B, C].

    Raises:
        InvalidJob: the network cannot be adapted to ``in_channels``.
    """
    # It loads torch's whole compiler: a second of every worker's start that only these students need.
    import torchvision

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {**_ONE_OUTPUT}
    elif name.startswith("vit_"):
        options = {"image_size": image_side}
    elif name.startswith("maxvit_"):
        options = {"input_size": (image_side, image_side)}
    takes_rate = name.startswith(("convnext_", "efficientnet_"))
    if drop_path is not None and takes_rate:
        options["stochastic_depth_prob"] = drop_path
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if drop_path is not None and not takes_rate:
        _set_drop_path(network, drop_path)
    if in_channels != _RGB:
        adapt_channels(network, name, in_channels)
    return network


def _set_drop_path(network: nn.Module, rate: float) -> None:
    """Scale the rates of all blocks, which rise linearly to the last one's."""
    from torchvision.ops import StochasticDepth

    blocks = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    most = max(block.p for block in blocks)
    for block in blocks:
        block.p *= rate / most


def adapt_channels(network: nn.Module, name: str, in_channels: int) -> None:
    """Make the layer that sees the image take ``in_channels``, at its own weights' scale.

    Raises:
        InvalidJob: there is no such layer, or it is not a plain convolution of three channels.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != _RGB or first.groups != 1:
        raise InvalidJob(
            f"student {name!r} cannot take images with {in_channels} channels: it does not begin "
            f"with a plain convolution of {_RGB}; use colour images or another student"
        )
    # Each model has its own initialisation; the spread it gave is the part of it that carries over
    # to another number of channels.
    spread = float(first.weight.detach().std())
    first.in_channels = in_channels
    first.weight = nn.Parameter(torch.empty(first.out_channels, in_channels, *first.kernel_size).normal_(std=spread))
