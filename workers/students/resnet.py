"""ResNet for small images (He et al. 2016, arXiv:1512.03385, section 4.2), in the papers' form.

Unlike the original's, shortcuts that change shape are 1x1 convolutions (option B), as in the
reference code of the distillation papers. Shapes: B batch, K channels, H height, W width, C classes.
"""

from itertools import pairwise

from torch import Tensor, nn

from workers.students.layers import convolution, initialise_convolutions, pool_globally


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the last ReLU follows the sum.

    Args:
        channels_in: K of the input.
        channels_out: K of the output.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(channels_in, channels_out, 3, stride=stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            convolution(channels_out, channels_out, 3),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                convolution(channels_in, channels_out, 1, stride=stride),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, channels_in, H, W] -> [B, channels_out, H / stride, W / stride]."""
        y_BKHW: Tensor = self.residual(x_BKHW) + self.shortcut(x_BKHW)
        return y_BKHW.relu()


class ResNet(nn.Module):
    """A 3x3 stem, three stages of (depth - 2) / 6 basic blocks, global mean, one linear layer.

    Args:
        classes: C.
        in_channels: K of the images.
        depth: layers with weights along the main path: 6n + 2.
        channels: K of the stem and of the three stages.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        *,
        depth: int,
        channels: tuple[int, int, int, int] = (16, 16, 32, 64),
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(
            convolution(in_channels, channels[0], 3),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential()
        for (before, after), stride in zip(pairwise(channels), (1, 2, 2), strict=True):
            self.stages.append(BasicBlock(before, after, stride))
            self.stages.extend(BasicBlock(after, after, 1) for _ in range(blocks - 1))
        self.classifier = nn.Linear(channels[-1], classes)
        initialise_convolutions(self)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        z_BC: Tensor = self.classifier(pool_globally(self.stages(self.stem(x_BKHW))))
        return z_BC
