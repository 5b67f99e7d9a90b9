"""The device that a process computes on: chosen once, said with its reason, never replaced in silence.

Where a scheduler has given the process a share of a GPU, that GPU is used or the work fails: a GPU that was promised
and became one CPU core would be told as success, a hundred times slower. The CPU is an explicit choice
(``training.device: "cpu"``, or ``RETORT_GPUS=0`` for a whole service).
"""

import platform

import torch

from workers.errors import DeviceUnavailable, first_line


def cuda_failure() -> str | None:
    """Reason why torch cannot compute on the current CUDA device, as a part of a sentence; None if it can.

    It allocates there and launches a kernel, since a driver that answers may still be too old for a kernel. A device
    that has no memory left works: whoever needs some finds that out.
    """
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        # Its own words name a driver that is missing or too old, with the versions found and wanted.
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch annotates none here
        if torch.cuda.device_count() < 1:
            return f"no CUDA device is visible to torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        torch.ones(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError) as error:
        # The words of torch's error and of CUDA's own, where there is no room for another process.
        if "out of memory" in str(error):
            return None
        return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, says: {first_line(error)}"
    return None


def choose_device(wanted: str, has_gpu_share: bool = False) -> tuple[torch.device, str]:
    """The device to compute on, with its index, and why.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.
        has_gpu_share: a scheduler has given this process a share of a GPU, so ``auto`` means ``cuda``.

    Raises:
        DeviceUnavailable: CUDA is asked for or promised, and does not work; says why.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "the job asks for the CPU"
    is_promised = wanted == "cuda" or has_gpu_share
    if not is_promised and not torch.cuda.is_available():
        return torch.device("cpu"), "torch sees no CUDA device"
    why_not = cuda_failure()
    if why_not is None:
        index = torch.cuda.current_device()
        return torch.device("cuda", index), f"CUDA device {torch.cuda.get_device_name(index)}"
    asked = "training.device is 'cuda'" if wanted == "cuda" else "a GPU was promised to this run"
    raise DeviceUnavailable(
        f"{asked}, but {why_not}. Mend the driver (`retort doctor` says what is missing), or choose the CPU: "
        "RETORT_GPUS=0 for the service, or training.device 'cpu' for the job"
    )


def new_stream(device: torch.device) -> "torch.cuda.Stream":
    """A CUDA stream on this device, beside the default one."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch annotates none here
    return stream


def describe_environment(device: torch.device, precision: str) -> dict[str, str]:
    """Device, its name and the precision that a run is trained in, as result.json has them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "device_name": name, "precision": precision}
