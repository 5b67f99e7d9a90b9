"""Modules and functions of an uploaded program that do one thing in training and another one in evaluation.

What they draw is of torch's generators, which the training loop seeds for each step
(``workers.training.optimization.step_seed``).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from workers.errors import InvalidJob
from workers.students.program import DropoutNode, StochasticDepthNode
from workers.students.program_operators import ATTENTION_RATE, ATTENTION_RATE_NAME


class FormOfDropout(nn.Module):
    """Dropout by one of torch's functions: of single values, or of channels, or so that mean and variance stay."""

    def __init__(self, node: DropoutNode) -> None:
        super().__init__()
        self.p = node.p
        self._function: Callable[[Tensor, float, bool], Tensor] = getattr(torch, node.form)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the same shape."""
        return self._function(x, self.p, self.training)


class StochasticDepth(nn.Module):
    """Product with a random mask of mean 1 in training; in evaluation the identity.

    Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382, as timm (``DropPath``) and torchvision
    write it: to the bits, if ``scale`` and ``draw`` are what the program has.
    """

    def __init__(self, node: StochasticDepthNode) -> None:
        super().__init__()
        self.keep, self._draw, self._scale = node.keep, node.draw, node.scale

    def forward(self, x: Tensor, shape: Sequence[int] | None) -> Tensor:
        """Values of the same shape.

        Args:
            shape: of the mask, 1 where it is shared; None is that of ``x``.

        Raises:
            InvalidJob: the mask is larger than ``x``, or has another rank.
        """
        if not self.training:
            return x
        sizes = tuple(x.shape if shape is None else shape)
        if len(sizes) != x.ndim or any(own not in (1, size) for own, size in zip(sizes, x.shape, strict=True)):
            raise InvalidJob(
                f"an uploaded program multiplies {list(x.shape)} by a random mask of {list(sizes)}: each size of a "
                "mask is 1 or the value's own"
            )
        mask = self._mask(x, sizes)
        if self._scale == "mask":
            return x * mask.div_(self.keep)
        return x.div(self.keep) * mask if self._scale == "input" else (x * mask).div(self.keep)

    def _mask(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Zeros and ones."""
        if self._draw == "bernoulli_":
            return x.new_empty(sizes).bernoulli_(self.keep)
        if self._draw == "bernoulli":
            return torch.bernoulli(x.new_full(sizes, self.keep))
        # In float32 whatever the precision is: others have too few numbers between 0 and 1.
        uniform = torch.rand(sizes, device=x.device)
        mask = (uniform + self.keep).floor() if self._draw == "floor" else uniform < self.keep
        return mask.to(x.dtype)


def attend(network: nn.Module, *args: object, **kwargs: object) -> Tensor:
    """Attention of torch, with its rate of dropout where ``network`` trains, and without where it does not."""
    if not network.training:
        args, kwargs = _without_dropout(args, kwargs)
    attended: Tensor = torch.ops.aten.scaled_dot_product_attention.default(*args, **kwargs)
    return attended


def _without_dropout(
    args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments of attention, with a rate of 0."""
    rest = {name: value for name, value in kwargs.items() if name != ATTENTION_RATE_NAME}
    return (*args[:ATTENTION_RATE], *([0.0] if len(args) > ATTENTION_RATE else []), *args[ATTENTION_RATE + 1 :]), rest
