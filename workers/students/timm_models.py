"""timm's classifiers as students: logits only, any number of channels; nothing is downloaded."""

from typing import Any

from torch import nn

from workers.errors import InvalidJob, first_line


def build_timm(name: str, classes: int, in_channels: int, image_side: int, *, drop_path: float | None) -> nn.Module:
    """A timm classifier with random weights.

    Args:
        name: timm's own, without the catalog's prefix.
        classes: C.
        in_channels: of the images.
        image_side: in pixels; networks of a fixed size are made for exactly this height and width.
        drop_path: timm's ``drop_path_rate``; None is the network's own.

    Returns:
        A network from float32 [B, in_channels, H, W] to logits [B, C].

    Raises:
        InvalidJob: timm cannot make it so: it has no stochastic depth, or cannot take such images.
    """
    # It loads as much as torch itself, and only these students need it.
    from timm.layers.drop import DropPath
    from timm.models import create_model

    options: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    try:
        arguments = input_arguments(name, in_channels, image_side)
        network: nn.Module = create_model(pretrained=False, num_classes=classes, **arguments, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError, IndexError) as error:
        asked = "" if drop_path is None else f" and training.drop_path {drop_path}"
        raise InvalidJob(
            f"student 'timm/{name}' cannot be made for images of {image_side} x {image_side} with {in_channels} "
            f"channels{asked}: {first_line(error)}"
        ) from error
    if drop_path and not any(isinstance(module, DropPath) for module in network.modules()):
        raise InvalidJob(f"training.drop_path is {drop_path}, and student 'timm/{name}' has no stochastic depth")
    return network


def input_arguments(name: str, in_channels: int, image_side: int) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for such images: the name, ``in_chans``, and ``img_size`` where it has one."""
    from timm.models import resolve_model_input_args

    arguments: dict[str, Any] = resolve_model_input_args(name, {"input_size": (in_channels, image_side, image_side)})
    return arguments
