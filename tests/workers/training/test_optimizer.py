"""Optimizers of a run: torch's own, without what torch.compile would need."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from workers.config.training import Adam, AdamW, RmsProp, Sgd, Training
from workers.training.optimization.optimizer import new_optimizer

CHOICES: dict[str, Sgd | AdamW | Adam | RmsProp] = {
    "sgd": Sgd(lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adamw": AdamW(lr=3e-3, weight_decay=0.01),
    "adam": Adam(lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01),
    "rmsprop": RmsProp(lr=3e-3, alpha=0.9, eps=0.0316, momentum=0.9, weight_decay=1e-2),
    "rmsprop_centered": RmsProp(lr=3e-3, centered=True),
}
PLAIN: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}
# Prints whether the compiler was imported by a training process: its steps, and a checkpoint that is taken up.
PROGRAM = """
import sys, torch
from workers.config.training import Adam, AdamW, RmsProp, Sgd, Training
from workers.training.loop import train_group
from workers.training.optimization.optimizer import new_optimizer
for chosen in (Sgd(), AdamW(), Adam(), RmsProp()):
    network = torch.nn.Linear(4, 2)
    optimizer = new_optimizer(Training(optimizer=chosen), [*network.parameters()], torch.device("cpu"))
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        network(torch.ones(3, 4)).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_optimizer_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("name", CHOICES)
def test_optimizer_computes_what_torchs_own_does(name: str) -> None:
    """To the last bit, over steps, a checkpoint between them, and parameters that have no gradient."""
    chosen = CHOICES[name]
    torch.manual_seed(0)
    ours, theirs = nn.Linear(8, 4), nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    unused = nn.Parameter(torch.ones(3))
    optimizer = new_optimizer(Training(optimizer=chosen), [*ours.parameters(), unused], torch.device("cpu"))
    assert isinstance(optimizer, PLAIN[chosen.kind])
    # torch has no fused RMSprop.
    options = chosen.model_dump(exclude={"kind"}) | ({} if chosen.kind == "rmsprop" else {"fused": True})
    plain = PLAIN[chosen.kind](theirs.parameters(), **options)
    for step in range(6):
        if step == 3:
            again = new_optimizer(Training(optimizer=chosen), [*ours.parameters(), unused], torch.device("cpu"))
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
        inputs = torch.randn(5, 8)
        for network, each in ((ours, optimizer), (theirs, plain)):
            each.zero_grad(set_to_none=True)
            network(inputs).square().mean().backward()
            each.step()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(own, other), step
            # A step is no part of what is differentiated.
            assert own.grad_fn is None
    assert torch.equal(unused, torch.ones(3))
