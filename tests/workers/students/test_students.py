"""Every student is the published network: its size, its cost, its shapes, its refusals.

The catalog's literals are the judge (they are the papers' table); the networks are held to them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import regnet

from workers.errors import InvalidJob, UnknownName
from workers.students.build import build_student
from workers.students.catalog import (
    OWN,
    PREFIX,
    STUDENTS,
    check_batch_size,
    check_image_side,
    check_student,
    describe,
    student_names,
)
from workers.students.shufflenet import shuffle_channels
from workers.students.torchvision_catalog import TORCHVISION, TorchvisionFamily
from workers.students.torchvision_models import adapt_channels

CIFAR = tuple(name for name, info in OWN.items() if not info.torchvision)
# Cheap to run for real, and different in what they are made of.
TORCHVISION_SAMPLE = (
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks without numbers: shapes and sizes of the largest ones in milliseconds.

    RegNet alone reads numbers back while it plans its layers; that arithmetic stays on the CPU.
    """
    plan = regnet.BlockParams.from_init_params

    def on_cpu(*args: object, **kwargs: object) -> object:
        with torch.device("cpu"):
            return plan(*args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_cpu)
    with torch.device("meta"):
        yield


def first_size(family: TorchvisionFamily) -> str:
    return next(iter(family.sizes))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_accumulates(network: nn.Module, images: Tensor) -> int:
    """Counted from the shapes that pass through every convolution and linear layer."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        per_output = weight[0].numel()
        counts.append(output[0].numel() * per_output)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.eval()(images)
    return sum(counts)


# -------------------------------------------------------------------------------------- the catalog


def test_catalog_loads_without_torch() -> None:
    program = (
        "import sys, workers.students, workers.students.catalog as c; c.describe();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_catalog_has_torchvisions_names_as_the_installed_version_lists_them() -> None:
    listed = torchvision.models.list_models(module=torchvision.models)
    ours = sorted(name.removeprefix(PREFIX) for name in STUDENTS if STUDENTS[name].torchvision)
    assert ours == sorted(listed)


def test_catalog_has_a_network_for_every_bare_name_and_for_nothing_else() -> None:
    assert all((info.network is None) == info.torchvision for info in OWN.values())


def test_catalog_prefixes_every_torchvision_name() -> None:
    assert all(name.startswith(PREFIX) == info.torchvision for name, info in STUDENTS.items())


def test_catalog_has_two_mobilenets_that_are_different_networks() -> None:
    assert parameters(build_student("mobilenet_v2", 100)) == 812_836
    assert parameters(build_student("torchvision/mobilenet_v2", 100)) == 2_351_972


def test_describe_is_json_and_names_every_student() -> None:
    described = json.loads(json.dumps(describe()))
    assert tuple(entry["name"] for entry in described) == student_names()
    for entry in described:
        assert entry["json_schema"]["properties"]["name"]["const"] == entry["name"]
        assert entry["summary"]
        assert entry["paper"]
        assert "network" not in entry


def test_check_student_answers_an_unknown_one_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'resnet56'") as caught:
        check_student("resnet57")
    assert set(caught.value.allowed) == set(OWN)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "convnext_tiny"])
def test_check_student_answers_a_torchvision_name_without_prefix_with_its_spelling(name: str) -> None:
    with pytest.raises(UnknownName, match=f"torchvision/{name}"):
        check_student(name)


# ------------------------------------------------------------------------------- size, cost, image side


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", CIFAR)
def test_catalog_parameters_are_exactly_the_published_count(name: str) -> None:
    assert parameters(build_student(name, 100)) == STUDENTS[name].parameters_100


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", CIFAR)
def test_catalog_multiply_accumulates_are_the_published_count(name: str) -> None:
    counted = multiply_accumulates(build_student(name, 100), torch.empty(1, 3, 32, 32)) / 1e6
    assert counted == pytest.approx(STUDENTS[name].mmacs_32, rel=0.01)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("family", TORCHVISION, ids=first_size)
def test_catalog_has_torchvisions_parameters_and_the_first_layer_can_change_channels(family: TorchvisionFamily) -> None:
    for size, published in family.sizes.items():
        network = build_student(PREFIX + size, 100, image_side=224)
        assert parameters(network) == published, size
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert (first.in_channels, first.groups) == (3, 1), size


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("family", TORCHVISION, ids=first_size)
def test_catalog_least_side_of_torchvision_is_the_least_that_can_be_trained_on(family: TorchvisionFamily) -> None:
    size = min(family.sizes, key=lambda name: family.sizes[name])
    side = family.min_side
    network = build_student(PREFIX + size, 10, image_side=side).train()
    with torch.no_grad():
        assert network(torch.empty(2, 3, side, side)).shape == (2, 10)
    if side > 8 and family.side_multiple == 1:
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            network(torch.empty(2, 3, side - 1, side - 1))


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("names", [CIFAR, *(tuple(PREFIX + size for size in of.sizes) for of in TORCHVISION)])
def test_catalog_says_exactly_which_student_has_batch_normalisation(names: Sequence[str]) -> None:
    """The API cannot look: it loads no torch."""
    for name in names:
        network = build_student(name, 10, image_side=224)
        has_norm = any(
            isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for module in network.modules()
        )
        assert has_norm == STUDENTS[name].batch_norm, name


def test_check_batch_size_refuses_one_picture_for_students_with_batch_normalisation() -> None:
    with pytest.raises(InvalidJob, match="'vgg8' has batch normalisation, which needs 2 pictures or more in a batch"):
        check_batch_size("vgg8", 1)
    check_batch_size("vgg8", 2)
    check_batch_size("torchvision/convnext_tiny", 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        build_student("vgg8", 10, image_side=8)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("resnet8", 7, "at least 8 pixels a side, these have 7"),
        ("torchvision/inception_v3", 74, "at least 75 pixels"),
        ("torchvision/vit_b_16", 40, "multiple of 16 pixels, these have 40"),
        ("torchvision/maxvit_t", 256, "multiple of 224"),
    ],
)
def test_check_image_side_refuses_images_that_a_student_cannot_see(name: str, side: int, message: str) -> None:
    with pytest.raises(InvalidJob, match=message):
        check_image_side(name, side)
    with pytest.raises(InvalidJob, match=message):
        build_student(name, 10, image_side=side)


@pytest.mark.parametrize(("classes", "in_channels", "what"), [(1, 3, "classes is 1"), (10, 0, "in_channels is 0")])
def test_build_student_refuses_impossible_numbers(classes: int, in_channels: int, what: str) -> None:
    with pytest.raises(InvalidJob, match=what):
        build_student("resnet8", classes, in_channels)


def test_build_student_refuses_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="resnet9"):
        build_student("resnet9", 10)


# ------------------------------------------------------------------------------------ what they compute


@pytest.mark.parametrize("name", CIFAR)
def test_student_logits_of_colour_images_of_any_size_have_one_column_per_class(name: str) -> None:
    network = build_student(name, 100).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
        assert network(torch.zeros(1, 3, 9, 17)).shape == (1, 100)


@pytest.mark.parametrize("name", CIFAR)
def test_student_takes_grey_8x8_images_which_reach_every_parameter_and_stay_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    network = build_student(name, 10, in_channels=1, image_side=8).train()
    images = torch.randn(4, 1, 8, 8)
    untouched = images.clone()
    logits = network(images)
    assert logits.shape == (4, 10)
    logits.logsumexp(dim=1).sum().backward()
    assert torch.equal(images, untouched)
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "cnn_m"])
def test_student_learns_a_handful_of_pictures(name: str) -> None:
    torch.manual_seed(0)
    network = build_student(name, 10, in_channels=1, image_side=8).train()
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize("name", TORCHVISION_SAMPLE)
def test_student_of_torchvision_trains_on_small_grey_images(name: str) -> None:
    torch.manual_seed(0)
    network = build_student(PREFIX + name, 10, in_channels=1, image_side=32).train()
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    logits.logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "name", ["resnet8", "shufflenet_v1", "torchvision/googlenet", "torchvision/mobilenet_v3_small"]
)
def test_student_of_the_same_seed_is_the_same(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_student(name, 10, in_channels=1).state_dict())
    first, same, other = states
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", ["torchvision/inception_v3", "torchvision/googlenet"])
def test_student_has_no_auxiliary_classifiers_in_training_either(name: str) -> None:
    logits = build_student(name, 10, image_side=96).train()(torch.empty(2, 3, 96, 96))
    assert isinstance(logits, Tensor)


def test_shuffle_channels_interleaves_the_groups() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle_channels(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle_channels(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


# ------------------------------------------------------------------------------------------ first weights


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "mobilenet_v2"])
def test_student_convolutions_start_at_the_reference_spread(name: str) -> None:
    torch.manual_seed(0)
    for module in build_student(name, 100).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["vgg8", "mobilenet_v2"])
def test_student_classifier_starts_small_where_the_reference_s_does(name: str) -> None:
    torch.manual_seed(0)
    classifier = build_student(name, 100).get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not classifier.bias.any()


def test_adapt_channels_keeps_the_spread_of_the_first_convolution() -> None:
    torch.manual_seed(0)
    colour = build_student("torchvision/resnet18", 10).get_submodule("conv1")
    spectral = build_student("torchvision/resnet18", 10, in_channels=7).get_submodule("conv1")
    assert isinstance(colour, nn.Conv2d)
    assert isinstance(spectral, nn.Conv2d)
    assert spectral.weight.shape == (64, 7, 7, 7)
    assert spectral.weight.std().item() == pytest.approx(colour.weight.std().item(), rel=0.05)


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Conv2d(12, 8, 1)), nn.Conv2d(3, 3, 1, groups=3)]
)
def test_adapt_channels_says_that_a_network_without_a_plain_first_convolution_needs_colour(network: nn.Module) -> None:
    with pytest.raises(InvalidJob, match="'odd' cannot take images with 1 channels"):
        adapt_channels(network, "odd", 1)
