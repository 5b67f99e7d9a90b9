"""Catalog of students: what each is, where it was published, how large it is, what images it takes.

Light: no torch, so that the API process can check a job and list the choices; ``build`` makes the networks. To add a
family, write its network in a file of this folder and add its sizes to ``_CIFAR``: see "Add a student family" in
workers/README.md.

Two spellings, one rule: a bare name is the form that the distillation papers train on 32x32 images (the mdistiller code
base is their common reference), or one of this project's own small networks; ``torchvision/NAME`` is torchvision's
classifier NAME, always, so that ``mobilenet_v2`` (half width, stride 16) and ``torchvision/mobilenet_v2`` (full width,
stride 32) cannot be confused.

The numbers are literals, not computed: a test builds every network and holds the table to it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

from workers.errors import InvalidJob, UnknownName
from workers.students.torchvision_catalog import MOBILENET_V2, RESNET, SHUFFLENET_V2, TORCHVISION, VGG, WIDE, Family

PREFIX = "torchvision/"


@dataclass(frozen=True)
class Network:
    """Class of a torch module, by name: the catalog loads no torch.

    Attributes:
        module: in this folder, without ``.py``.
        cls: its class, called with the numbers of classes and of input channels.
        arguments: further ones.
    """

    module: str
    cls: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class StudentInfo:
    """One network that can be trained.

    Attributes:
        name: what a job says, e.g. ``resnet8`` or ``torchvision/resnet18``.
        family: the architecture's usual name, shared by its sizes.
        summary: one sentence on this size.
        paper: where the architecture was published.
        parameters_100: trainable parameters with 100 classes and 3 input channels; of the vision
            transformers at 224x224, because their position embeddings grow with the image.
        mmacs_32: millions of multiply-accumulates (convolutions and linear layers) of one forward
            pass at 3x32x32 and 100 classes; None for torchvision's networks.
        reference_lr: learning rate of the papers' CIFAR-100 recipe (SGD with momentum 0.9, batch 64),
            lower for the mobile architectures; None for torchvision's networks.
        min_side: the smallest height and width in pixels on which it can be trained, never below 8;
            whether such an image leaves the deep layers anything to see is the user's choice.
        side_multiple: height and width must be a multiple of it, in pixels (1: any).
        batch_norm: whether it has batch normalisation: then it cannot be trained on one picture at a time.
        torchvision: whether torchvision makes it.
        network: what makes it; None where torchvision does.
    """

    name: str
    family: str
    summary: str
    paper: str
    parameters_100: int
    mmacs_32: float | None = None
    reference_lr: float | None = None
    min_side: int
    side_multiple: int = 1
    batch_norm: bool
    torchvision: bool
    network: Network | None = field(default=None, compare=False)


# ------------------------------------------------------------- the forms of the distillation papers

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
    return _cifar(name, "ResNet (CIFAR)", RESNET, parameters, mmacs, summary, network)


def _wide(depth: int, factor: int, parameters: int, mmacs: float) -> StudentInfo:
    blocks = f"three stages of {(depth - 4) // 6} pre-activation blocks"
    summary = f"{depth} layers, {blocks}, {_widths(factor)}"
    name = f"wrn_{depth}_{factor}"
    network = Network("wide_resnet", "WideResNet", {"depth": depth, "factor": factor})
    return _cifar(name, "Wide ResNet (CIFAR)", WIDE, parameters, mmacs, summary, network)


_CIFAR = (
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
        3_965_028,
        96.2,
        "five convolutions with batch normalisation, 64 to 512 channels, one linear layer",
        Network("vgg", "Vgg", {"convolutions": 1}),
    ),
    _cifar(
        "vgg13",
        "VGG (CIFAR)",
        VGG,
        9_462_180,
        284.9,
        "ten convolutions with batch normalisation, 64 to 512 channels, one linear layer",
        Network("vgg", "Vgg", {"convolutions": 2}),
    ),
    _cifar(
        "mobilenet_v2",
        "MobileNetV2 (CIFAR)",
        MOBILENET_V2,
        812_836,
        6.5,
        "half width, stride 16 in all, 1280 channels before the classifier",
        Network("mobilenet", "MobileNetV2", {"width": 0.5}),
    ),
    _cifar(
        "shufflenet_v1",
        "ShuffleNet (CIFAR)",
        _SHUFFLENET_V1,
        949_258,
        38.7,
        "3 groups, width 1, stride 8 in all: the stem keeps the image's size",
        Network("shufflenet", "ShuffleNetV1", {}),
    ),
    _cifar(
        "shufflenet_v2",
        "ShuffleNet V2 (CIFAR)",
        SHUFFLENET_V2,
        1_355_528,
        44.5,
        "width 1, stride 8 in all: the stem keeps the image's size",
        Network("shufflenet", "ShuffleNetV2", {}),
    ),
    _cifar(
        "cnn_s",
        "Small CNN",
        _OWN,
        30_196,
        2.8,
        "three convolutions, 16/32/64 channels",
        Network("small", "SmallCnn", {"width": 16, "convolutions": 1}),
    ),
    _cifar(
        "cnn_m",
        "Small CNN",
        _OWN,
        300_356,
        38.6,
        "six convolutions, 32/64/128 channels",
        Network("small", "SmallCnn", {"width": 32, "convolutions": 2}),
    ),
)


def _torchvision(family: Family) -> tuple[StudentInfo, ...]:
    return tuple(
        StudentInfo(
            name=PREFIX + size,
            family=family.family,
            summary=f"torchvision's {size}, from random weights",
            paper=family.paper,
            parameters_100=parameters,
            min_side=family.min_side,
            side_multiple=family.side_multiple,
            batch_norm=family.batch_norm,
            torchvision=True,
        )
        for size, parameters in family.sizes.items()
    )


# ------------------------------------------------------------------------------------- what is asked

STUDENTS: Mapping[str, StudentInfo] = MappingProxyType(
    {info.name: info for info in (*_CIFAR, *(i for f in TORCHVISION for i in _torchvision(f)))}
)


def student_names() -> tuple[str, ...]:
    """Names that a job may use: the bare ones first, then torchvision's."""
    return tuple(STUDENTS)


def check_student(name: str) -> StudentInfo:
    """Look up the description of ``name``.

    Raises:
        UnknownName: there is no such student; a torchvision name without its prefix is answered
            with the spelling that is meant, not with the nearest CIFAR network.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    prefixed = PREFIX + name
    raise UnknownName("student", name, (prefixed,) if prefixed in STUDENTS else STUDENTS)


def check_image_side(name: str, image_side: int) -> None:
    """Refuse images that the student ``name`` cannot be trained on.

    Args:
        name: of a student.
        image_side: the shorter of height and width, in pixels.

    Raises:
        UnknownName: there is no such student.
        InvalidJob: the side is below the student's least, or not the multiple it needs.
    """
    info = check_student(name)
    if image_side < info.min_side:
        raise InvalidJob(
            f"student {name!r} needs images of at least {info.min_side} pixels a side, these have "
            f"{image_side}: enlarge them, or choose a student whose min_side is {image_side} or less"
        )
    if image_side % info.side_multiple:
        raise InvalidJob(
            f"student {name!r} needs images whose side is a multiple of {info.side_multiple} pixels, "
            f"these have {image_side}: resize them, or choose another student"
        )


def check_batch_size(name: str, batch_size: int) -> None:
    """Refuse batches that the student ``name`` cannot be trained on.

    Args:
        name: of a student.
        batch_size: pictures in a batch.

    Raises:
        UnknownName: there is no such student.
        InvalidJob: it has batch normalisation, and a batch is one picture.
    """
    if check_student(name).batch_norm and batch_size < 2:
        raise InvalidJob(
            f"student {name!r} has batch normalisation, which needs 2 pictures or more in a batch, and "
            f"training.batch_size is {batch_size}: set it to 2 or more, or choose a student whose batch_norm is false"
        )


def describe() -> list[dict[str, object]]:
    """Describe every student as plain JSON: ``StudentInfo`` without the network, and the schema of its name."""
    return [
        {
            **{name: value for name, value in asdict(info).items() if name != "network"},
            "json_schema": _json_schema(info),
        }
        for info in STUDENTS.values()
    ]


def _json_schema(info: StudentInfo) -> dict[str, object]:
    return {
        "type": "object",
        "title": info.name,
        "description": info.summary,
        "properties": {"name": {"const": info.name}},
        "required": ["name"],
        "additionalProperties": False,
    }
