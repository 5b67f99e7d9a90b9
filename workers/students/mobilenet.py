"""MobileNetV2 for small images (Sandler et al. 2018, arXiv:1801.04381), in the papers' form.

Half width, and one halving fewer than for ImageNet: 32x32 images end at 2x2. Departures of the
reference code from the article that the published counts contain: the first block, too, has a 1x1
expansion, the last convolution keeps 1280 channels, and the nonlinearity is ReLU, not ReLU6.
Shapes: B batch, K channels, H height, W width, C classes.
"""

from torch import Tensor, nn

from workers.students.layers import (
    convolution,
    initialise_classifier,
    initialise_convolutions,
    pool_globally,
)

# Table 2 of the article: expansion, channels at width 1, blocks, stride of the first block. But for
# the second row, which keeps the image's size here and halves it there.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280


def _convolve(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels_in, channels_out, kernel, stride=stride, groups=groups),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without a nonlinearity.

    Args:
        channels_in: K of the input.
        channels_out: K of the output.
        stride: of the 3x3 convolution.
        expansion: channels inside, as a multiple of ``channels_in``.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.residual = nn.Sequential(
            _convolve(channels_in, inner, 1),
            _convolve(inner, inner, 3, stride=stride, groups=inner),
            convolution(inner, channels_out, 1),
            nn.BatchNorm2d(channels_out),
        )
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, channels_in, H, W] -> [B, channels_out, H / stride, W / stride]."""
        y_BKHW: Tensor = self.residual(x_BKHW)
        return x_BKHW + y_BKHW if self.has_shortcut else y_BKHW


class MobileNetV2(nn.Module):
    """A strided stem, seven stages of inverted residuals, a 1x1 convolution, mean, linear.

    Args:
        classes: C.
        in_channels: K of the images.
        width: factor on the article's channels, but for the last convolution's.
    """

    def __init__(self, classes: int, in_channels: int, *, width: float) -> None:
        super().__init__()
        before = int(_STEM_CHANNELS * width)
        self.stem = _convolve(in_channels, before, 3, stride=2)
        self.stages = nn.Sequential()
        for expansion, channels, blocks, first_stride in _STAGES:
            after = int(channels * width)
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                self.stages.append(InvertedResidual(before, after, stride, expansion))
                before = after
        self.last = _convolve(before, _LAST_CHANNELS, 1)
        self.classifier = nn.Linear(_LAST_CHANNELS, classes)
        initialise_convolutions(self)
        initialise_classifier(self.classifier)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        features_BKHW = self.last(self.stages(self.stem(x_BKHW)))
        z_BC: Tensor = self.classifier(pool_globally(features_BKHW))
        return z_BC
