"""Uploaded programs that draw random numbers: taken as what they are in training and evaluation, or refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.exported_programs import Drawing, converted, exported, refusal
from workers.errors import InvalidJob
from workers.students import program_trial
from workers.students.program import StochasticDepthNode, read_program
from workers.students.program_modules import StochasticDepth
from workers.students.program_network import build_program

KEEP = 0.6
Function = Callable[[Tensor], Tensor]


def _old_timm(x: Tensor) -> Tensor:
    """As timm has written it until 2021, and many copies do."""
    mask = KEEP + torch.rand((x.shape[0], 1), dtype=x.dtype, device=x.device)
    mask.floor_()
    return x.div(KEEP) * mask


def _in_place(x: Tensor) -> Tensor:
    mask = x.new_empty((x.shape[0], 1)).bernoulli_(KEEP).div_(KEEP)
    return x.clone().mul_(mask)


TAKEN: dict[str, Function] = {
    "timm": lambda x: x * x.new_empty((x.shape[0], 1)).bernoulli_(KEEP).div_(KEEP),
    # torch.export leaves out an argument that is its default.
    "at half": lambda x: x * x.new_empty((x.shape[0], 1)).bernoulli_(0.5).div_(0.5),
    "torchvision, of a batch": lambda x: torch.empty((1, 1), dtype=x.dtype).bernoulli_(KEEP).div_(KEEP) * x,
    "timm before": _old_timm,
    "below": lambda x: x * (torch.rand(x.shape[0], 1) < KEEP) / KEEP,
    "to float": lambda x: x * ((torch.rand_like(x) < KEEP).float() / KEEP),
    "of probabilities": lambda x: x / KEEP * torch.bernoulli(torch.full((x.shape[0], 1), KEEP)),
    "like": lambda x: x * torch.empty_like(x).bernoulli_(KEEP).div_(KEEP),
    "in place": _in_place,
    "channels": lambda x: F.dropout2d(x.view(-1, 4, 2, 2), 0.4).flatten(1),
    "alpha": lambda x: F.feature_alpha_dropout(F.alpha_dropout(x, 0.1, True).view(-1, 4, 4), 0.2, True).flatten(1),
}


@pytest.mark.parametrize("name", TAKEN)
def test_program_draws_as_the_exported_network_does_and_nothing_in_evaluation(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Drawing(TAKEN[name], rate=0.3)
    path = converted(exported(network.train(), tmp_path / "p.pt2"))
    made = build_program("uploaded", path, 10, in_channels=1, image_side=8)
    x = torch.randn(6, 1, 8, 8)
    for training in (True, False):
        results = []
        for each in (network, made):
            torch.manual_seed(1)
            results.append(each.train(training)(x))
            results[-1].square().mean().backward()
        assert torch.equal(*results), training
    assert not torch.equal(made.train()(x), made(x))
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, dict(made.named_parameters())[key].grad), key  # type: ignore[arg-type]
    assert program_trial.mistake(str(path))[0] == ""
    assert read_program(path).mode_note() == ""


def _changed_since(x: Tensor) -> Tensor:
    divided, y = x.div(KEEP), x.add_(1)
    return divided * x.new_empty((x.shape[0], 1)).bernoulli_(KEEP) + y


def _changed_before_division(x: Tensor) -> Tensor:
    product = (x := x.clone()) * x.new_empty((x.shape[0], 1)).bernoulli_(KEEP)
    return x.add_(1) + product / KEEP


def _changed_probabilities(x: Tensor) -> Tensor:
    full = torch.full((1, 1), KEEP)
    full[0] = 0.5
    return x / KEEP * torch.bernoulli(full)


REFUSED: dict[str, tuple[Function, str]] = {
    "not divided": (lambda x: x * x.new_empty((x.shape[0], 1)).bernoulli_(KEEP), "mul.Tensor"),
    "divided by another": (lambda x: x * x.new_empty((x.shape[0], 1)).bernoulli_(KEEP).div_(0.5), "div_.Tensor"),
    "added": (lambda x: x + torch.rand_like(x), "rand_like.default"),
    "not drawn": (lambda x: x * x.new_empty((x.shape[0], 1)), "mul.Tensor"),
    "of values": (lambda x: torch.bernoulli(x.sigmoid()), "bernoulli.default"),
    "used twice": (lambda x: (m := torch.rand_like(x).lt(KEEP) / KEEP) * x + m * x, "div.Tensor"),
    "of another shape": (lambda x: x * (torch.rand_like(x[:1]) < KEEP) / KEEP, "mul.Tensor"),
    "of integers": (lambda x: x * (torch.rand_like(x).lt(KEEP) / KEEP).to(torch.int64), "div.Tensor"),
    "twice": (lambda x: x / KEEP * torch.rand_like(x).add(KEEP, alpha=2).floor(), "rand_like.default"),
    "changed since": (_changed_since, "mul.Tensor"),
    "changed before division": (_changed_before_division, "mul.Tensor"),
    "changed probabilities": (_changed_probabilities, "bernoulli.default"),
    "drawn into a value": (lambda x: x.clone().bernoulli_(KEEP), "bernoulli_.float"),
    "rounds a value": (lambda x: x.clone().floor_(), "floor_.default"),
    "normal": (lambda x: x + torch.randn_like(x), "randn_like.default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_program_whose_evaluation_cannot_be_known_is_refused_by_operator_and_module(name: str, tmp_path: Path) -> None:
    function, operator = REFUSED[name]
    said = refusal(exported(nn.Sequential(Drawing(function)), tmp_path / "p.pt2"))
    assert f"'torch.ops.aten.{operator}' of module '0' (" in said
    assert "torch.export fixes what is drawn for training and evaluation alike" in said
    assert "or export the network without it" in said


def test_program_that_was_exported_for_evaluation_says_what_it_lacks(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 10)).eval()
    path = converted(exported(network, tmp_path / "p.pt2"))
    assert "was exported for evaluation" in read_program(path).mode_note()


class _Draws(nn.Module):
    """Stochastic depth and attention with dropout of their own, without a module that says whether it trains."""

    def __init__(self, draws: bool, rate: float) -> None:
        super().__init__()
        self.norm, self.head, self.draws, self.rate = nn.LayerNorm(64), nn.Linear(64, 10), draws, rate

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(x.flatten(1)).reshape(-1, 2, 4, 8)
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=self.rate if self.training else 0.0).flatten(1)
        if self.training and self.draws:
            y = y * y.new_empty((y.shape[0], 1)).bernoulli_(KEEP).div_(KEEP)
        logits: Tensor = self.head(y)
        return logits


@pytest.mark.parametrize(
    ("draws", "rate", "training", "is_told"),
    [(True, 0.0, True, True), (False, 0.3, True, True), (True, 0.3, False, False), (False, 0.0, True, False)],
)
def test_program_that_may_have_been_exported_for_evaluation_says_that_it_cannot_be_told(
    draws: bool, rate: float, training: bool, is_told: bool, tmp_path: Path
) -> None:
    network = _Draws(draws, rate).train(training)
    note = read_program(converted(exported(network, tmp_path / "p.pt2"))).mode_note()
    assert ("cannot be told" not in note) == is_told
    assert not (is_told and note)


@pytest.mark.parametrize("shape", [[2, 1, 1], [2, 3], [1 << 20, 1]])
def test_mask_that_is_larger_than_its_value_is_refused_before_it_is_drawn(shape: list[int]) -> None:
    node = StochasticDepthNode(input="x", output="y", keep=KEEP, shape=(1, 1), draw="bernoulli_", scale="mask")
    with pytest.raises(InvalidJob, match="each size of a mask is 1 or the value's own"):
        StochasticDepth(node)(torch.zeros(2, 4), shape)


class _Windows(nn.Module):
    """Tensors made of numbers and written to by views, as torchvision's Swin makes its mask; and read as a whole."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.head, self.way = nn.Linear(64, 10), way

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1)
        mask = y.new_zeros((8, 8))
        seen = mask.view(64) if self.way == "reads a view" else mask
        mask[2:4, 1:] = 1
        if self.way == "writes to a view":
            mask.view(64).fill_(3.0)
        elif self.way == "reads a view":
            mask = seen + 1
        angle = torch.arange(64, dtype=torch.float32).div(4, rounding_mode="floor").sin()
        logits: Tensor = self.head(y * mask.flatten() + angle.masked_fill(angle > 0, 0.5))
        return logits


def test_program_that_writes_to_slices_of_what_it_has_made_is_taken(tmp_path: Path) -> None:
    network = _Windows()
    path = converted(exported(network, tmp_path / "p.pt2"))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(build_program("uploaded", path, 10, in_channels=1, image_side=8)(x), network(x))


@pytest.mark.parametrize("way", ["writes to a view", "reads a view"])
def test_program_that_writes_to_what_may_be_a_copy_is_refused(way: str, tmp_path: Path) -> None:
    said = refusal(exported(_Windows(way), tmp_path / "q.pt2"))
    assert "by 'torch.ops.aten.fill_.Scalar', and reads that memory as" in said


def test_program_whose_numbers_depend_on_the_size_of_the_batch_is_refused(tmp_path: Path) -> None:
    """Four pictures are more than are computed when it is tried."""
    network = Drawing(lambda x: x + x.shape[0] // 4)
    said = refusal(exported(network, tmp_path / "p.pt2"))
    assert "computes with the number of pictures in a batch by 'torch.ops.aten.add.Tensor'" in said
