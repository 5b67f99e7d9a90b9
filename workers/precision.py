"""Arithmetic of training and evaluation: which precision a run trains in, and why.

bfloat16 makes the arithmetic of layers several times faster, and adds about seven launches to each layer with weights
(casts of weights, activations and gradients, forward and back). Where steps are replayed from a CUDA graph a launch
costs next to nothing, and bfloat16 is faster for every student that was measured on an H200: by 1.15 (mobilenet_v2) to
5.3 (resnet32x4). Launched one by one, small students get slower by it, and what pays is decided by counted operations.
Never by a clock: a run gets the same precision on every device of a kind.

TensorFloat-32 has 10 bits of mantissa and is never used unless a job says ``precision: "tf32"``: torch's default, which
takes it for convolutions, would train and measure another network than the exported one. Evaluation is float32.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# 7 launches of 3 us each, in which about 50 TFLOP/s more of bfloat16 than of float32 make up for them, by the data
# sheets of Hopper GPUs. On an H200 it parts those that lose by it (resnet8, resnet20) from one that gains (wrn_40_2).
OPERATIONS_PER_LAYER_MIN = 1e9
# Compute capability of Ampere, whose tensor cores were the first with TensorFloat-32 and bfloat16.
_TENSOR_CORE_CAPABILITY = (8, 0)


def tf32_in_force(asked: bool, device: torch.device) -> bool:
    """Whether float32 products on this device are computed in TensorFloat-32, if that was asked for.

    No CPU has it, nor a GPU of a compute capability below 8.0, and ``NVIDIA_TF32_OVERRIDE=0`` switches it off for
    NVIDIA's libraries whatever a program says. What results and caches say of TF32 is this, never what was asked for.

    Args:
        device: that is computed on, as it was chosen; a GPU is asked for its capability.
    """
    if not asked or device.type != "cuda" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    return torch.cuda.get_device_capability(device) >= _TENSOR_CORE_CAPABILITY


def choose_precision(
    wanted: str,
    device: torch.device,
    network: nn.Module,
    batch_size: int,
    picture: tuple[int, int, int],
    *,
    is_replayed: bool = False,
) -> tuple[Precision, str]:
    """The precision that a run trains in, and why; ``tf32`` is float32 where the device has none.

    Args:
        wanted: ``auto``, ``float32``, ``tf32`` or ``bfloat16``.
        network: on the device.
        batch_size: rows that this process computes in a step.
        picture: (channels, height, width) of its input.
        is_replayed: its steps are to be replayed from a CUDA graph.
    """
    match wanted:
        case "tf32" if not tf32_in_force(True, device):
            return "float32", f"the job asks for tf32, which {device} does not have, or NVIDIA_TF32_OVERRIDE forbids"
        case "float32" | "tf32" | "bfloat16":
            return wanted, "the job asks for it"
    if device.type != "cuda":
        return "float32", "bfloat16 is for GPUs"
    if torch.cuda.get_device_capability(device) < _TENSOR_CORE_CAPABILITY:
        return "float32", "bfloat16 is for GPUs of compute capability 8.0 or more"
    if is_replayed:
        return "bfloat16", "its steps are to be replayed as a CUDA graph, where the casts cost no launches"
    operations = _forward_operations(network, device, picture) * 3 * batch_size
    layers = sum(isinstance(module, nn.Linear | nn.modules.conv._ConvNd) for module in network.modules())
    per_layer = operations / max(layers, 1)
    chosen: Precision = "bfloat16" if per_layer >= OPERATIONS_PER_LAYER_MIN else "float32"
    return chosen, (
        f"a step has {per_layer / 1e9:.2g} GFLOP a layer, and bfloat16 pays from {OPERATIONS_PER_LAYER_MIN / 1e9:g} on"
    )


def _forward_operations(network: nn.Module, device: torch.device, picture: tuple[int, int, int]) -> float:
    """Floating-point operations of one picture's forward pass; leaves the network as it was."""
    was_training = network.training
    network.eval()
    # It imports Triton, which takes 0.1 s that only those who count need to spend.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, *picture), device=device))
    network.train(was_training)
    return float(counter.get_total_flops())


@contextlib.contextmanager
def float32_as(precision: Precision) -> Iterator[None]:
    """Compute float32 matrix products and convolutions in TensorFloat-32 if that is the precision, else in full."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # The older of torch's two ways to say it: its exporter asks the older one, and refuses to work if they differ.
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Context in which autocast is off on a type of device."""
    # Entered only where there is something to leave: three calls of Python in every step.
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type=device_type, enabled=False)
    return contextlib.nullcontext()
