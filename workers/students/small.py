"""Plain small networks for small images and small machines: a few 3x3 convolutions, no shortcuts.

Not from a paper: something that trains in seconds on 8x8 digits, for first jobs, demonstrations and
tests. Shapes: B batch, K channels, H height, W width, C classes.
"""

from torch import Tensor, nn

from workers.students.layers import convolution, initialise_convolutions, pool_globally


class SmallCnn(nn.Module):
    """Three stages of 3x3 convolutions, each after the first halving H and W; mean; linear.

    Args:
        classes: C.
        in_channels: K of the images.
        width: K of the first stage; the others have twice and four times as many.
        convolutions: in each stage.
    """

    def __init__(self, classes: int, in_channels: int, *, width: int, convolutions: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        before = in_channels
        for stage in range(3):
            channels = width * 2**stage
            for position in range(convolutions):
                stride = 2 if stage > 0 and position == 0 else 1
                self.features.append(convolution(before, channels, 3, stride=stride))
                self.features.append(nn.BatchNorm2d(channels))
                self.features.append(nn.ReLU(inplace=True))
                before = channels
        self.classifier = nn.Linear(before, classes)
        initialise_convolutions(self)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        z_BC: Tensor = self.classifier(pool_globally(self.features(x_BKHW)))
        return z_BC
