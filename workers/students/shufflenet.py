"""ShuffleNet v1 and v2 for small images, in the papers' form, with torch's own initialisation.

Zhang et al. 2018 (arXiv:1707.01083) and Ma et al. 2018 (arXiv:1807.11164). The stem is a 1x1
convolution that keeps the image's size, so that 32x32 images end at 4x4. Shapes: B batch,
K channels, H height, W width, C classes.
"""

import torch
from torch import Tensor, nn

from workers.students.layers import convolution, pool_globally

_STEM_CHANNELS = 24


def shuffle_channels(x_BKHW: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: channel j of group i moves to j*groups+i."""
    return torch.unflatten(x_BKHW, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _stem(in_channels: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(in_channels, _STEM_CHANNELS, 1),
        nn.BatchNorm2d(_STEM_CHANNELS),
        nn.ReLU(inplace=True),
    )


def _pointwise(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        convolution(channels_in, channels_out, 1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [
        convolution(channels, channels, 3, stride=stride, groups=channels),
        nn.BatchNorm2d(channels),
    ]


# --------------------------------------------------------------------------------------- version 1


class GroupedUnit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 per channel, grouped 1x1 (figure 2 of the v1 article).

    Like the reference code, and unlike the article, it rectifies after the 3x3 convolution too.

    Args:
        channels_in: K of the input.
        channels_out: K of the output; with stride 2 it contains the pooled input's channels.
        stride: 1 adds the input to the result, 2 appends it to the result, pooled.
        groups: of the 1x1 convolutions; the first of a network has one, its input being narrow.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups: int) -> None:
        super().__init__()
        own = channels_out - channels_in if stride == 2 else channels_out
        inner = own // 4
        self.first_groups = 1 if channels_in == _STEM_CHANNELS else groups
        self.reduce = nn.Sequential(
            convolution(channels_in, inner, 1, groups=self.first_groups),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.expand = nn.Sequential(
            *_depthwise(inner, stride),
            nn.ReLU(inplace=True),
            convolution(inner, own, 1, groups=groups),
            nn.BatchNorm2d(own),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, channels_in, H, W] -> [B, channels_out, H / stride, W / stride]."""
        y_BKHW: Tensor = self.expand(shuffle_channels(self.reduce(x_BKHW), self.first_groups))
        if self.pool is None:
            return (y_BKHW + x_BKHW).relu()
        return torch.cat([y_BKHW, self.pool(x_BKHW)], dim=1).relu()


class ShuffleNetV1(nn.Module):
    """A 1x1 stem, three stages of 4, 8 and 4 grouped units, global mean, one linear layer.

    Args:
        classes: C.
        in_channels: K of the images.
        groups: of the 1x1 convolutions.
        channels: K of the three stages (the article's table 1 fixes them for each ``groups``).
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        *,
        groups: int = 3,
        channels: tuple[int, int, int] = (240, 480, 960),
    ) -> None:
        super().__init__()
        self.stem = _stem(in_channels)
        self.stages = nn.Sequential()
        before = _STEM_CHANNELS
        for after, units in zip(channels, (4, 8, 4), strict=True):
            self.stages.append(GroupedUnit(before, after, 2, groups))
            self.stages.extend(GroupedUnit(after, after, 1, groups) for _ in range(units - 1))
            before = after
        self.classifier = nn.Linear(before, classes)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        z_BC: Tensor = self.classifier(pool_globally(self.stages(self.stem(x_BKHW))))
        return z_BC


# --------------------------------------------------------------------------------------- version 2


class SplitUnit(nn.Module):
    """Half of the channels pass, half are convolved (figure 3c of the v2 article).

    Args:
        channels: K of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(*_pointwise(half, half), *_depthwise(half, 1), *_pointwise(half, half))

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, K, H, W] -> the same shape."""
        kept_BKHW, changed_BKHW = x_BKHW.chunk(2, dim=1)
        return shuffle_channels(torch.cat([kept_BKHW, self.branch(changed_BKHW)], dim=1), 2)


class DownUnit(nn.Module):
    """Two strided branches side by side, which halve H and W (figure 3d of the v2 article).

    Args:
        channels_in: K of the input.
        channels_out: K of the output, half from each branch.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.left = nn.Sequential(*_depthwise(channels_in, 2), *_pointwise(channels_in, half))
        self.right = nn.Sequential(*_pointwise(channels_in, half), *_depthwise(half, 2), *_pointwise(half, half))

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """[B, channels_in, H, W] -> [B, channels_out, H / 2, W / 2]."""
        return shuffle_channels(torch.cat([self.left(x_BKHW), self.right(x_BKHW)], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """A 1x1 stem, stages of 4, 8 and 4 units, a 1x1 convolution, global mean, one linear layer.

    Args:
        classes: C.
        in_channels: K of the images.
        channels: K of the three stages and of the last convolution (the article's table 5).
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        *,
        channels: tuple[int, int, int, int] = (116, 232, 464, 1024),
    ) -> None:
        super().__init__()
        *stages, last = channels
        self.stem = _stem(in_channels)
        self.stages = nn.Sequential()
        before = _STEM_CHANNELS
        for after, units in zip(stages, (4, 8, 4), strict=True):
            self.stages.append(DownUnit(before, after))
            self.stages.extend(SplitUnit(after) for _ in range(units - 1))
            before = after
        self.last = nn.Sequential(*_pointwise(before, last))
        self.classifier = nn.Linear(last, classes)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Images float32 [B, in_channels, H, W] -> logits [B, C]."""
        features_BKHW = self.last(self.stages(self.stem(x_BKHW)))
        z_BC: Tensor = self.classifier(pool_globally(features_BKHW))
        return z_BC
