"""Description of a student: what a job names, its size, the images that it takes, the network that makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Network:
    """Class of a torch module, by name: the catalog loads no torch.

    Attributes:
        module: in this folder, without ``.py``; one with a dot in it is named in full.
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
            transformers at 224x224, because their position embeddings grow with the image; None for timm's.
        mmacs_32: millions of multiply-accumulates (convolutions and linear layers) of one forward
            pass at 3x32x32 and 100 classes; None for torchvision's networks.
        reference_lr: learning rate of the papers' CIFAR-100 recipe (SGD with momentum 0.9, batch 64),
            lower for the mobile architectures; None for torchvision's networks.
        min_side: the smallest height and width in pixels on which it can be trained, never below 8;
            whether such an image leaves the deep layers anything to see is the user's choice.
        side_multiple: height and width must be a multiple of it, in pixels (1: any).
        batch_norm: whether it has batch normalisation: then it cannot be trained on one picture at a time; None for
            timm's, which are tried when a job starts.
        torchvision: whether torchvision makes it.
        drop_path: whether it has stochastic depth, whose rate ``training.drop_path`` sets: then it is built with this
            keyword; None for timm's.
        network: what makes it; None where torchvision or timm does.
    """

    name: str
    family: str
    summary: str
    paper: str
    parameters_100: int | None
    mmacs_32: float | None = None
    reference_lr: float | None = None
    min_side: int
    side_multiple: int = 1
    batch_norm: bool | None
    torchvision: bool
    drop_path: bool | None = False
    network: Network | None = field(default=None, compare=False)
