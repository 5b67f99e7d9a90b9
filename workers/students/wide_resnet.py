"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

Without dropout, as the distillation papers train them. Shapes: B batch, K channels, H height,
W width, C classes.
"""

from itertools import pairwise

from torch import Tensor, nn

from workers.students.layers import convolution, initialise_convolutions, pool_globally


class PreActivationBlock(nn.Module):
    """Normalise and rectify, then convolve, twice (He et al. 2016, arXiv:1603.05027).

    A shortcut that changes shape starts from the rectified input, an identity from the raw one.

    Args:
        channels_in: K of the input.
        channels_out: K of the output.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            convolution(channels_in, channels_out, 3, stride=stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            convolution(channels_out, channels_out, 3),
        )
        self.shortcut: nn.Module | None = None
        if channels_in != channels_out:
            self.shortcut = convolution(channels_in, channels_out, 1, stride=stride)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, channels_in, H, W] -> [B, channels_out, H / stride, W / stride]."""
        active_BKHW = self.activation(x_BKHW)
        kept_BKHW = x_BKHW if self.shortcut is None else self.shortcut(active_BKHW)
        y_BKHW: Tensor = kept_BKHW + self.residual(active_BKHW)
        return y_BKHW


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of (depth - 4) / 6 blocks, global mean, one linear layer.

    Args:
        classes: C.
        in_channels: K of the images.
        depth: layers with weights, the shortcuts' included as the paper counts: 6n + 4.
        factor: the stages have 16, 32 and 64 times as many channels.
    """

    def __init__(self, classes: int, in_channels: int, *, depth: int, factor: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = (16, 16 * factor, 32 * factor, 64 * factor)
        self.stem = convolution(in_channels, channels[0], 3)
        self.stages = nn.Sequential()
        for (before, after), stride in zip(pairwise(channels), (1, 2, 2), strict=True):
            self.stages.append(PreActivationBlock(before, after, stride))
            self.stages.extend(PreActivationBlock(after, after, 1) for _ in range(blocks - 1))
        self.activation = nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(channels[-1], classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        features_BKHW = self.activation(self.stages(self.stem(x_BKHW)))
        z_BC: Tensor = self.classifier(pool_globally(features_BKHW))
        return z_BC
