"""Derive workers/students/timm.json from the timm that is installed: ``python -m tests.repository.timm_students``.

Every classifier of timm is built without memory (torch's meta device), for 100 classes, and tried on pictures of
ascending sizes: what it has and takes is read off, and nothing is downloaded. Takes 20 minutes of one core; a model
that cannot be built so, or gives no logits [B, 100], is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

DATA = Path(__file__).parents[2] / "workers/students/timm.json"
CLASSES = 100
SIDES = (8, 16, 24, 32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512, 560, 640, 800, 1024)


def describe(name: str) -> dict[str, Any] | None:
    """What the catalog tells of a model; None if it is no classifier of pictures.

    Returns:
        ``parameters`` at 100 classes, ``least``: the smallest side that is not known to fail, ``batch_norm``,
        ``drop_path``.
    """
    failed = 0
    for side in SIDES:
        network = _built(name, side)
        if network is not None and _classifies(network, side):
            return {
                "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
                "least": max(8, failed + 1),
                "batch_norm": any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()),
                "drop_path": _built(name, side, drop_path_rate=0.5) is not None,
            }
        failed = side
    return None


def _built(name: str, side: int, **options: object) -> nn.Module | None:
    from timm.models import create_model, resolve_model_input_args

    try:
        with torch.device("meta"):
            arguments = resolve_model_input_args(
                name, {"input_size": (3, side, side)}, num_classes=CLASSES, pretrained=False, **options
            )
            network: nn.Module = create_model(**arguments)
    except Exception:
        return None
    return network.eval()


@torch.no_grad()
def _classifies(network: nn.Module, side: int) -> bool:
    try:
        logits = network(torch.empty(2, 3, side, side, device="meta"))
    except Exception:
        return False
    return isinstance(logits, torch.Tensor) and tuple(logits.shape) == (2, CLASSES)


def main() -> None:
    """Write the file, module by module."""
    import timm

    torch.set_num_threads(1)
    families: dict[str, dict[str, Any]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if (found := describe(name)) is not None:
                families.setdefault(module, {})[name] = found
        sys.stderr.write(f"{module}: {len(families.get(module, {}))}\n")
    text = ",\n".join(
        f'  {json.dumps(module)}: {{\n' + ",\n".join(f"    {json.dumps(n)}: {json.dumps(i)}" for n, i in of.items()) + "\n  }"
        for module, of in families.items()
    )
    DATA.write_text(f'{{\n  "version": {json.dumps(timm.__version__)},\n  "families": {{\n{text}\n  }}\n}}\n')


if __name__ == "__main__":
    main()
