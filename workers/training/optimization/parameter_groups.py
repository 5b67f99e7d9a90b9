"""Parameter groups of an optimizer: those with weight decay, and those that it leaves alone."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from workers.config.training import Training

Groups: TypeAlias = Sequence[nn.Parameter] | Sequence[dict[str, object]]


def parameter_groups(training: Training, network: nn.Module, learned: Mapping[str, nn.Parameter]) -> Groups:
    """Parameters that are trained, in the groups that ``training.no_decay`` asks for.

    ``norm_and_bias`` is timm's rule (``timm.optim.param_groups_weight_decay``): no weight decay for vectors and
    scalars (the scale and shift of every normalisation, biases), for what is named ``bias``, and for what the network
    itself names in ``no_weight_decay()``, as timm's do with position embeddings.

    Args:
        learned: temperatures that the method learns: scalars.
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    everything: list[nn.Parameter] = [*named.values(), *learned.values()]
    if training.no_decay == "none":
        return everything
    own: set[str] = set(getattr(network, "no_weight_decay", set)())
    spared = {id(p) for name, p in named.items() if p.ndim <= 1 or name.endswith(".bias") or name in own}
    spared |= {id(p) for p in learned.values()}
    groups: list[dict[str, object]] = [
        {"params": [p for p in everything if id(p) in spared], "weight_decay": 0.0},
        {"params": [p for p in everything if id(p) not in spared]},
    ]
    return groups
