"""Layers that the CIFAR families share. Shapes: B batch, K channels, H height, W width."""

from torch import Tensor, nn


def convolution(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A ``kernel`` x ``kernel`` convolution without bias that keeps H and W when ``stride`` is 1."""
    return nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )


def pool_globally(x_BKHW: Tensor) -> Tensor:
    """Mean over H and W, [B, K]: any image size, and unlike adaptive pooling always deterministic."""
    return x_BKHW.mean(dim=(2, 3))


def initialise_convolutions(network: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out), biases zero (He et al. 2015, arXiv:1502.01852).

    What the reference code does for ResNet, wide ResNet, VGG and MobileNetV2. Batch normalisation
    keeps torch's scale 1 and shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_classifier(classifier: nn.Linear) -> None:
    """Draw the weights from N(0, 0.01^2), biases zero: the reference code for VGG and MobileNetV2."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
