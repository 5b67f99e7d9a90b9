"""VGG for small images (Simonyan & Zisserman 2015, arXiv:1409.1556), in the papers' form.

With batch normalisation and one linear layer in place of three. Halved three times, not five: the
last two stages share a resolution (4x4 for 32x32 images), so that 8x8 images still leave a pixel.
Shapes: B batch, K channels, H height, W width, C classes.
"""

from torch import Tensor, nn

from workers.students.layers import (
    initialise_classifier,
    initialise_convolutions,
    pool_globally,
)

_CHANNELS = (64, 128, 256, 512, 512)
_POOLED_AFTER = (0, 1, 2)


class Vgg(nn.Module):
    """Five stages of 3x3 convolutions, global mean, one linear layer.

    Args:
        classes: C.
        in_channels: K of the images.
        convolutions: in each stage (1: the papers' "VGG-8", 2: VGG-13).
    """

    def __init__(self, classes: int, in_channels: int, *, convolutions: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        before = in_channels
        for stage, channels in enumerate(_CHANNELS):
            for _ in range(convolutions):
                # The convolutions' biases do nothing before a batch normalisation; the published
                # parameter counts include them.
                self.features.append(nn.Conv2d(before, channels, 3, padding=1))
                self.features.append(nn.BatchNorm2d(channels))
                self.features.append(nn.ReLU(inplace=True))
                before = channels
            if stage in _POOLED_AFTER:
                self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Linear(_CHANNELS[-1], classes)
        initialise_convolutions(self)
        initialise_classifier(self.classifier)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        z_BC: Tensor = self.classifier(pool_globally(self.features(x_BKHW)))
        return z_BC
