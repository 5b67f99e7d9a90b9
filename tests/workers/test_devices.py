"""The choice of a device where there is no GPU: a promised one is an error, never the CPU in silence."""

import re

import pytest
import torch

from workers.devices import choose_device, cuda_failure
from workers.errors import DeviceUnavailable

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def test_choose_device_takes_the_cpu_where_nothing_was_promised() -> None:
    device, why = choose_device("auto")
    assert device == torch.device("cpu")
    assert "no CUDA device" in why


@pytest.mark.parametrize(("wanted", "has_gpu_share"), [("cuda", False), ("auto", True)])
def test_choose_device_refuses_the_cpu_in_a_gpus_place(wanted: str, has_gpu_share: bool) -> None:
    with pytest.raises(DeviceUnavailable, match=r"built for CUDA.*RETORT_GPUS=0"):
        choose_device(wanted, has_gpu_share)
    assert choose_device("cpu", has_gpu_share)[0].type == "cpu"


def test_cuda_failure_says_what_torch_says() -> None:
    assert re.search("NVIDIA driver|No CUDA GPUs", cuda_failure() or "")
