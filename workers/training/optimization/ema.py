"""Exponential moving average of a student's weights, beside those that are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """Moving average of a network's parameters and running statistics, on the network's device.

    As timm's ``ModelEmaV3``: it begins as the network is, and everything in float follows by ``lerp``. Counters are the
    network's own. Nothing waits for the device, and all tensors stay where they are, so a CUDA graph can hold it.

    Args:
        network: whose weights are averaged; with its first weights.
        decay: average = decay x average + (1 - decay) x weight.

    Attributes:
        averages: one tensor for each parameter and buffer in float.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay = decay
        state = network.state_dict(keep_vars=True)
        # Under each of its names, where a tensor has several.
        self._ids = {name: id(tensor) for name, tensor in state.items() if tensor.is_floating_point()}
        live = {id(state[name]): state[name] for name in self._ids}
        self._live: list[Tensor] = list(live.values())
        self.averages = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def restart(self) -> None:
        """Begin as the network is now."""
        torch._foreach_copy_(self.averages, self._live)

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network by one step."""
        torch._foreach_lerp_(self.averages, self._live, 1.0 - self._decay)

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Logits [B, C] of the network with the averaged weights."""
        logits_BC: Tensor = torch.func.functional_call(self._network, self.state(), (x_BKHW,))
        return logits_BC

    def state(self) -> dict[str, Tensor]:
        """The averages by their names in the network's state; not copied."""
        averages = dict(zip(map(id, self._live), self.averages, strict=True))
        return {name: averages[of] for name, of in self._ids.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a checkpoint, where the averages lie."""
        for name, average in self.state().items():
            average.copy_(state[name])
