"""Seed of the random draws of one step: a function of (seed, epoch, step), so that a resumed run draws the same."""

import torch


def seed_step(seed: int, epoch: int, step: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of this device for one step."""
    number = ((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63
    # A tenth of what torch.manual_seed takes, which visits every backend.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
