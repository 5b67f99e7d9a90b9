"""The gradient of one batch, computed by several processes: ``python -m tests.support.replica_gradient RANK RANKS
FOLDER``.

The first of them leaves it in FOLDER/gradients.pt.
"""

import sys
from pathlib import Path

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from workers.methods.catalog import parse_method
from workers.objective.objective import objective
from workers.objective.statistics import row_statistics
from workers.students.build import build_student
from workers.training.optimization.distributed import Replicas

_ROWS, _CLASSES = 32, 7


def _normalising() -> nn.Module:
    """Every kind of batch normalisation that is made whole."""
    first = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 8, 3, bias=False), BatchNormAct2d(8, act_layer=nn.SiLU)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, _CLASSES)
    return nn.Sequential(*first, *second, *head)


def gradients(replicas: Replicas) -> dict[str, Tensor]:
    """Of small networks in float64, by method and parameter; statistics of batch normalisation beside them."""
    found = {}
    for method in ("kd", "dist", "mlkd", "dkd"):
        torch.manual_seed(3)
        network = (_normalising() if method == "dkd" else build_student("resnet8", _CLASSES)).double().train()
        replicas.normalise_whole_batches(network)
        pictures = torch.randn(_ROWS, 3, 16, 16, dtype=torch.float64)
        labels_B = torch.randint(_CLASSES, (_ROWS,))
        teacher_BC = 3 * torch.randn(_ROWS, _CLASSES, dtype=torch.float64)
        mine = replicas.share.of(_ROWS)
        logits_BC = replicas.whole(network(pictures[mine]), _ROWS, mine)
        total = objective(
            parse_method(method).expand(),
            logits_BC,
            labels_B,
            epoch=200,
            teacher_logits_BC=teacher_BC,
            teacher_statistics=row_statistics(teacher_BC),
        ).total
        torch.autograd.backward(total)
        parameters = dict(network.named_parameters())
        replicas.sum_gradients(list(parameters.values()))
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            found[f"{method} {name}"] = parameter.grad
        found |= {f"{method} {name}": value for name, value in network.named_buffers() if "running" in name}
    return found


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    replicas = Replicas(rank, ranks, folder, torch.device("cpu"))
    found = gradients(replicas)
    if replicas.is_first:
        torch.save(found, folder / "gradients.pt")
    replicas.close()


if __name__ == "__main__":
    main()
