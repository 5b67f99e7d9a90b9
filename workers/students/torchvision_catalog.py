"""torchvision's classifiers: papers, parameter counts and image sizes, as literals. Light: no torch.

A test holds the names equal to what the installed torchvision lists, and every number to what its
network has: an update of torchvision that adds or changes a network fails there, not in a job.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RESNET = "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385"
WIDE = "Zagoruyko & Komodakis 2016, Wide Residual Networks, arXiv:1605.07146"
VGG = "Simonyan & Zisserman 2015, Very Deep Convolutional Networks, arXiv:1409.1556"
MOBILENET_V2 = "Sandler et al. 2018, MobileNetV2, arXiv:1801.04381"
SHUFFLENET_V2 = "Ma et al. 2018, ShuffleNet V2, arXiv:1807.11164"


@dataclass(frozen=True)
class TorchvisionFamily:
    """torchvision classifiers with a paper, an image side and a kind of layers in common; sizes: name -> parameters.

    ``timm``: timm has networks of these names whose weights have the same names and which compute the same.
    ``drop_path``: they have stochastic depth.
    """

    family: str
    paper: str
    min_side: int
    sizes: Mapping[str, int]
    side_multiple: int = 1
    batch_norm: bool = True
    timm: bool = False
    drop_path: bool = False


_VIT = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929"
_SQUEEZENET = "Iandola et al. 2016, SqueezeNet, arXiv:1602.07360"

TORCHVISION = (
    TorchvisionFamily(
        "AlexNet",
        "Krizhevsky 2014, One weird trick for parallelizing, arXiv:1404.5997",
        63,
        {"alexnet": 57_413_540},
        batch_norm=False,
    ),
    TorchvisionFamily(
        "ConvNeXt",
        "Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545",
        32,
        {
            "convnext_base": 87_668_964,
            "convnext_large": 196_384_036,
            "convnext_small": 49_531_588,
            "convnext_tiny": 27_897_028,
        },
        batch_norm=False,
        drop_path=True,
    ),
    TorchvisionFamily(
        "DenseNet",
        "Huang et al. 2017, Densely Connected Convolutional Networks, arXiv:1608.06993",
        29,
        {
            "densenet121": 7_056_356,
            "densenet161": 26_692_900,
            "densenet169": 12_650_980,
            "densenet201": 18_285_028,
        },
        timm=True,
    ),
    TorchvisionFamily(
        "EfficientNet",
        "Tan & Le 2019, EfficientNet, arXiv:1905.11946",
        8,
        {
            "efficientnet_b0": 4_135_648,
            "efficientnet_b1": 6_641_284,
            "efficientnet_b2": 7_841_894,
            "efficientnet_b3": 10_849_932,
            "efficientnet_b4": 17_727_916,
            "efficientnet_b5": 28_545_684,
            "efficientnet_b6": 40_966_204,
            "efficientnet_b7": 64_043_060,
        },
        drop_path=True,
    ),
    TorchvisionFamily(
        "EfficientNetV2",
        "Tan & Le 2021, EfficientNetV2, arXiv:2104.00298",
        8,
        {
            "efficientnet_v2_l": 117_362_372,
            "efficientnet_v2_m": 52_986_456,
            "efficientnet_v2_s": 20_305_588,
        },
        drop_path=True,
    ),
    TorchvisionFamily(
        "GoogLeNet",
        "Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842",
        15,
        {"googlenet": 5_702_404},
    ),
    TorchvisionFamily(
        "Inception v3",
        "Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv:1512.00567",
        75,
        {"inception_v3": 21_990_468},
        timm=True,
    ),
    TorchvisionFamily(
        "MaxViT",
        "Tu et al. 2022, MaxViT, arXiv:2204.01697",
        224,
        {"maxvit_t": 30_458_824},
        side_multiple=224,
        drop_path=True,
    ),
    TorchvisionFamily(
        "MNASNet",
        "Tan et al. 2019, MnasNet, arXiv:1807.11626",
        8,
        {
            "mnasnet0_5": 1_065_612,
            "mnasnet0_75": 2_017_308,
            "mnasnet1_0": 3_230_412,
            "mnasnet1_3": 5_129_356,
        },
    ),
    TorchvisionFamily("MobileNetV2", MOBILENET_V2, 8, {"mobilenet_v2": 2_351_972}),
    TorchvisionFamily(
        "MobileNetV3",
        "Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
        8,
        {"mobilenet_v3_large": 4_330_132, "mobilenet_v3_small": 1_620_356},
    ),
    TorchvisionFamily(
        "RegNet",
        "Radosavovic et al. 2020, Designing Network Design Spaces, arXiv:2003.13678",
        8,
        {
            "regnet_x_16gf": 52_434_436,
            "regnet_x_1_6gf": 8_368_436,
            "regnet_x_32gf": 105_542_660,
            "regnet_x_3_2gf": 14_388_452,
            "regnet_x_400mf": 5_135_076,
            "regnet_x_800mf": 6_653_956,
            "regnet_x_8gf": 37_843_748,
            "regnet_y_128gf": 638_159_194,
            "regnet_y_16gf": 80_867_640,
            "regnet_y_1_6gf": 10_402_330,
            "regnet_y_32gf": 141_705_070,
            "regnet_y_3_2gf": 18_074_638,
            "regnet_y_400mf": 3_947_244,
            "regnet_y_800mf": 5_726_012,
            "regnet_y_8gf": 37_566_172,
        },
    ),
    TorchvisionFamily(
        "ResNet",
        RESNET,
        8,
        {
            "resnet101": 42_705_060,
            "resnet152": 58_348_708,
            "resnet18": 11_227_812,
            "resnet34": 21_335_972,
            "resnet50": 23_712_932,
        },
        timm=True,
    ),
    TorchvisionFamily(
        "ResNeXt",
        "Xie et al. 2017, Aggregated Residual Transformations, arXiv:1611.05431",
        8,
        {
            "resnext101_32x8d": 86_947_236,
            "resnext101_64x4d": 81_611_172,
            "resnext50_32x4d": 23_184_804,
        },
        timm=True,
    ),
    TorchvisionFamily(
        "ShuffleNet V2",
        SHUFFLENET_V2,
        8,
        {
            "shufflenet_v2_x0_5": 444_292,
            "shufflenet_v2_x1_0": 1_356_104,
            "shufflenet_v2_x1_5": 2_581_124,
            "shufflenet_v2_x2_0": 5_549_896,
        },
    ),
    TorchvisionFamily("SqueezeNet", _SQUEEZENET, 21, {"squeezenet1_0": 786_724}, batch_norm=False),
    TorchvisionFamily("SqueezeNet", _SQUEEZENET, 17, {"squeezenet1_1": 773_796}, batch_norm=False),
    TorchvisionFamily(
        "Swin Transformer",
        "Liu et al. 2021, Swin Transformer, arXiv:2103.14030",
        8,
        {"swin_b": 86_845_724, "swin_s": 48_914_158, "swin_t": 27_596_254},
        batch_norm=False,
        drop_path=True,
    ),
    TorchvisionFamily(
        "Swin Transformer V2",
        "Liu et al. 2022, Swin Transformer V2, arXiv:2111.09883",
        8,
        {"swin_v2_b": 87_008_348, "swin_v2_s": 49_045_342, "swin_v2_t": 27_659_470},
        batch_norm=False,
        drop_path=True,
    ),
    TorchvisionFamily(
        "VGG",
        VGG,
        32,
        {
            "vgg11": 129_176_036,
            "vgg13": 129_360_548,
            "vgg16": 134_670_244,
            "vgg19": 139_979_940,
        },
        batch_norm=False,
    ),
    TorchvisionFamily(
        "VGG",
        VGG,
        32,
        {
            "vgg11_bn": 129_181_540,
            "vgg13_bn": 129_366_436,
            "vgg16_bn": 134_678_692,
            "vgg19_bn": 139_990_948,
        },
    ),
    TorchvisionFamily(
        "Vision Transformer",
        _VIT,
        16,
        {"vit_b_16": 85_875_556, "vit_l_16": 303_404_132},
        side_multiple=16,
        batch_norm=False,
    ),
    TorchvisionFamily(
        "Vision Transformer",
        _VIT,
        32,
        {"vit_b_32": 87_532_132, "vit_l_32": 305_612_900},
        side_multiple=32,
        batch_norm=False,
    ),
    TorchvisionFamily("Vision Transformer", _VIT, 14, {"vit_h_14": 630_892_900}, side_multiple=14, batch_norm=False),
    TorchvisionFamily(
        "Wide ResNet",
        WIDE,
        8,
        {"wide_resnet101_2": 125_042_596, "wide_resnet50_2": 67_039_140},
        timm=True,
    ),
)

TIMM = frozenset(size for family in TORCHVISION if family.timm for size in family.sizes)
"""Names that stand for the same network in torchvision and in timm."""
