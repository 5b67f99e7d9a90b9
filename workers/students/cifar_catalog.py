"""Students of the distillation papers, as trained on 32x32 images, and this project's own small networks.

The mdistiller code base is the papers' common reference. The numbers are literals, not computed: a test builds every
network and holds the table to it. To add a family, add its sizes to ``CIFAR``: see "Add a student family" in
workers/README.md.
"""

from workers.students.student_info import Network, StudentInfo
from workers.students.torchvision_catalog import MOBILENET_V2, RESNET, SHUFFLENET_V2, VGG, WIDE

_SHUFFLENET_V1 = "Zhang et al. 2018, ShuffleNet, arXiv:1707.01083"
_OWN = "this project: plain 3x3 convolutions, no publication"
_FOUR_TIMES = (32, 64, 128, 256)


def _cifar(
    name: str, family: str, paper: str, parameters: int, mmacs: float, summary: str, network: Network
) -> StudentInfo:
    return StudentInfo(
        name=name,
        family=family,
        summary=summary,
        paper=paper,
        parameters_100=parameters,
        mmacs_32=mmacs,
        reference_lr=0.01 if family.startswith(("MobileNet", "ShuffleNet")) else 0.05,
        min_side=8,
        batch_norm=True,
        torchvision=False,
        network=network,
    )


def _widths(factor: int) -> str:
    return "/".join(str(channels * factor) for channels in (16, 32, 64)) + " channels"


def _resnet(depth: int, parameters: int, mmacs: float, factor: int = 1) -> StudentInfo:
    name = f"resnet{depth}" + (f"x{factor}" if factor > 1 else "")
    blocks = f"three stages of {(depth - 2) // 6} basic blocks"
    summary = f"{depth} layers, {blocks}, {_widths(factor)}"
    network = Network("resnet", "ResNet", {"depth": depth} | ({"channels": _FOUR_TIMES} if factor == 4 else {}))
    return _cifar(name, "ResNet (CIFAR)", RESNET, parameters=parameters, mmacs=mmacs, summary=summary, network=network)


def _wide(depth: int, factor: int, parameters: int, mmacs: float) -> StudentInfo:
    blocks = f"three stages of {(depth - 4) // 6} pre-activation blocks"
    summary = f"{depth} layers, {blocks}, {_widths(factor)}"
    name = f"wrn_{depth}_{factor}"
    network = Network("wide_resnet", "WideResNet", {"depth": depth, "factor": factor})
    return _cifar(
        name, "Wide ResNet (CIFAR)", WIDE, parameters=parameters, mmacs=mmacs, summary=summary, network=network
    )


CIFAR = (
    _resnet(8, 83_892, 12.5),
    _resnet(14, 181_108, 26.7),
    _resnet(20, 278_324, 40.8),
    _resnet(32, 472_756, 69.1),
    _resnet(44, 667_188, 97.4),
    _resnet(56, 861_620, 125.8),
    _resnet(110, 1_736_564, 253.2),
    _resnet(8, 1_233_540, 177.1, factor=4),
    _resnet(32, 7_433_860, 1083.0, factor=4),
    _wide(16, 1, 180_916, 26.7),
    _wide(16, 2, 703_284, 101.1),
    _wide(40, 1, 569_780, 83.3),
    _wide(40, 2, 2_255_156, 327.6),
    _cifar(
        "vgg8",
        "VGG (CIFAR)",
        VGG,
        parameters=3_965_028,
        mmacs=96.2,
        summary="five convolutions with batch normalisation, 64 to 512 channels, one linear layer",
        network=Network("vgg", "Vgg", {"convolutions": 1}),
    ),
    _cifar(
        "vgg13",
        "VGG (CIFAR)",
        VGG,
        parameters=9_462_180,
        mmacs=284.9,
        summary="ten convolutions with batch normalisation, 64 to 512 channels, one linear layer",
        network=Network("vgg", "Vgg", {"convolutions": 2}),
    ),
    _cifar(
        "mobilenet_v2",
        "MobileNetV2 (CIFAR)",
        MOBILENET_V2,
        parameters=812_836,
        mmacs=6.5,
        summary="half width, stride 16 in all, 1280 channels before the classifier",
        network=Network("mobilenet", "MobileNetV2", {"width": 0.5}),
    ),
    _cifar(
        "shufflenet_v1",
        "ShuffleNet (CIFAR)",
        _SHUFFLENET_V1,
        parameters=949_258,
        mmacs=38.7,
        summary="3 groups, width 1, stride 8 in all: the stem keeps the image's size",
        network=Network("shufflenet", "ShuffleNetV1", {}),
    ),
    _cifar(
        "shufflenet_v2",
        "ShuffleNet V2 (CIFAR)",
        SHUFFLENET_V2,
        parameters=1_355_528,
        mmacs=44.5,
        summary="width 1, stride 8 in all: the stem keeps the image's size",
        network=Network("shufflenet", "ShuffleNetV2", {}),
    ),
    _cifar(
        "cnn_s",
        "Small CNN",
        _OWN,
        parameters=30_196,
        mmacs=2.8,
        summary="three convolutions, 16/32/64 channels",
        network=Network("small", "SmallCnn", {"width": 16, "convolutions": 1}),
    ),
    _cifar(
        "cnn_m",
        "Small CNN",
        _OWN,
        parameters=300_356,
        mmacs=38.6,
        summary="six convolutions, 32/64/128 channels",
        network=Network("small", "SmallCnn", {"width": 32, "convolutions": 2}),
    ),
)
