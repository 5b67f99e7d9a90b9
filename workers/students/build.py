"""Make a student by name. Imports torch; ``catalog`` holds everything that can be known without it.

The caller seeds torch and moves the network: this file draws from the global generator, on the
current default device, and does nothing else.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from workers.errors import InvalidJob
from workers.students.catalog import PREFIX, check_image_side
from workers.students.mobilenet import MobileNetV2
from workers.students.resnet import ResNet
from workers.students.shufflenet import ShuffleNetV1, ShuffleNetV2
from workers.students.small import SmallCnn
from workers.students.torchvision_models import build_torchvision
from workers.students.vgg import Vgg
from workers.students.wide_resnet import WideResNet

_FOUR_TIMES = (32, 64, 128, 256)

# name -> (classes, in_channels) -> network, of every name without a prefix.
BUILDERS: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType(
    {
        "resnet8": partial(ResNet, depth=8),
        "resnet14": partial(ResNet, depth=14),
        "resnet20": partial(ResNet, depth=20),
        "resnet32": partial(ResNet, depth=32),
        "resnet44": partial(ResNet, depth=44),
        "resnet56": partial(ResNet, depth=56),
        "resnet110": partial(ResNet, depth=110),
        "resnet8x4": partial(ResNet, depth=8, channels=_FOUR_TIMES),
        "resnet32x4": partial(ResNet, depth=32, channels=_FOUR_TIMES),
        "wrn_16_1": partial(WideResNet, depth=16, factor=1),
        "wrn_16_2": partial(WideResNet, depth=16, factor=2),
        "wrn_40_1": partial(WideResNet, depth=40, factor=1),
        "wrn_40_2": partial(WideResNet, depth=40, factor=2),
        "vgg8": partial(Vgg, convolutions=1),
        "vgg13": partial(Vgg, convolutions=2),
        "mobilenet_v2": partial(MobileNetV2, width=0.5),
        "shufflenet_v1": ShuffleNetV1,
        "shufflenet_v2": ShuffleNetV2,
        "cnn_s": partial(SmallCnn, width=16, convolutions=1),
        "cnn_m": partial(SmallCnn, width=32, convolutions=2),
    }
)


def build_student(name: str, classes: int, in_channels: int = 3, image_side: int = 32) -> nn.Module:
    """A student with random weights, drawn from torch's global generator.

    Args:
        name: from the catalog.
        classes: C, at least 2.
        in_channels: K of the images, at least 1.
        image_side: the shorter of their height and width, in pixels. Only torchvision's vision
            transformers and MaxViT depend on it: they take square images of exactly this side.

    Returns:
        A network from float32 images [B, K, H, W] to logits [B, C].

    Raises:
        UnknownName: there is no such student.
        InvalidJob: it cannot be trained on such images, or a number is too small.
    """
    check_image_side(name, image_side)
    for what, value, least in (("classes", classes, 2), ("in_channels", in_channels, 1)):
        if value < least:
            raise InvalidJob(f"{what} is {value}; a student needs at least {least}")
    if name.startswith(PREFIX):
        return build_torchvision(name.removeprefix(PREFIX), classes, in_channels, image_side)
    return BUILDERS[name](classes, in_channels)
