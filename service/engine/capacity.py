"""Capacity: cores and GPUs that a run gets, and how many runs fit at once, as set or as the machine allows.

On a GPU the kernels of several processes take turns: on an H200, 4, 8 and 12 processes that train resnet8 make 0.92 of
the steps of one (``tests.benchmarks.gpu``). A second one fills the time in which the first starts, measures and saves;
what has small students share a GPU with a gain is the group (``JobSpec.group_size``), whose runs overlap in a process.
"""

import math
from dataclasses import dataclass
from typing import Literal

from service.engine.allocation import UNITS, Need
from service.errors import InvalidSettings
from service.estimates.workload import Slots
from service.settings import GiB, Settings
from workers.config.training import Training

# A student with its optimizer, activations and resident dataset takes some GiB, CUDA itself half of one.
RUN_GPU_MEMORY_BYTES = 8 * GiB
# One that launches, and one that loads.
RUN_CORES = 2.0
RUNS_PER_GPU_MAX = 2


@dataclass(frozen=True)
class Capacity:
    """Capacity of the machine: what each run gets, and how many runs fit at once.

    Attributes:
        cpus, gpus: of the cluster.
        run_cpus: cores of each process of a run.
        gpu_share: of a GPU, of each process; 1 where there is no GPU.
        reason: why these, as a sentence's part.
    """

    cpus: int
    gpus: int
    run_cpus: float
    gpu_share: float
    reason: str

    @property
    def cpu_slots(self) -> int:
        """Processes that there are cores for."""
        return int(self.cpus / self.run_cpus)

    @property
    def gpu_slots(self) -> int:
        """Processes that there are shares of GPUs for."""
        return self.gpus * int(1 / self.gpu_share)

    @property
    def slots(self) -> int:
        """Processes that fit at once, if each takes what a run takes here."""
        return min(self.cpu_slots, self.gpu_slots) if self.gpus else self.cpu_slots

    def gpu_share_of(self, training: Training, whole: bool = False) -> float:
        """The share of a GPU for each process of a run; 0 on the CPU.

        Several processes of one student have a GPU each, for NCCL takes no two of them on one.

        Args:
            whole: nobody else shall be on its GPU.
        """
        if not self.gpus or training.device == "cpu":
            return 0.0
        return 1.0 if whole or training.actors > 1 else self.gpu_share

    def inference_share_of(self, training: Training, whole: bool = False) -> float:
        """The share of a GPU for each process that infers the caches of a job; 0 on the CPU.

        ``training.device`` holds for the teacher, too: a job for the CPU takes no GPU.

        Args:
            whole: nobody else shall be on its GPU.
        """
        if not self.gpus or training.device == "cpu":
            return 0.0
        return 1.0 if whole else self.gpu_share

    def need_of(self, training: Training, whole: bool = False) -> Need:
        """The need of a run."""
        return Need(training.actors, self.run_cpus, self.gpu_share_of(training, whole))

    def weight_of(self, processes: int, cpus: float, gpu_share: float) -> float:
        """The weight of so many processes in sharing: the part of all cores, or of all GPUs if that is more."""
        return processes * max(cpus / self.cpus, gpu_share / self.gpus if self.gpus else 0.0)

    def stage_of(self, training: Training, gpu_share: float) -> Literal["all", "train"]:
        """The stages that the process of a run does, see ``TrainingTask.stage``.

        Another one makes the artifacts where a GPU would wait for them, unless it took turns with a training loop on
        its only core: starting it and loading what exports takes several seconds of a core.
        """
        return "train" if gpu_share and training.actors == 1 and self.run_cpus >= RUN_CORES else "all"

    def refusal(self, training: Training, *, evaluates: bool = False) -> tuple[str, str] | None:
        """The reason why a run could never start here, as a type of error and a message; None if it can.

        Whether the GPUs work is not known here.

        Args:
            evaluates: the job trains nothing, so none of ``training.actors`` is ever started.
        """
        actors = 1 if evaluates else training.actors
        if training.device == "cuda" and not self.gpus:
            return "DeviceUnavailable", (
                "training.device is 'cuda', but the engine has no GPU: use 'auto' or 'cpu', "
                "or give the engine one (RETORT_GPUS; `retort doctor` says what the driver shows)"
            )
        if actors > self.cpu_slots:
            return "TooFewSlots", (
                f"training.actors is {actors}, but the engine has room for {self.cpu_slots} at once: "
                f"use {self.cpu_slots} or fewer, or set RETORT_CPUS to more or RETORT_RUN_CPUS to less"
            )
        if not evaluates and self.gpu_share_of(training) * actors > self.gpus:
            return "TooFewSlots", (
                f"training.actors is {actors}, and each takes a whole GPU (NCCL takes no two processes on one), "
                f"but the engine has {self.gpus}: use {self.gpus} or fewer, or training.device 'cpu'"
            )
        return None


def slots_of(capacity: Capacity) -> Slots:
    """Slots as estimates count them."""
    return Slots(cpu=capacity.cpu_slots, gpu=capacity.slots if capacity.gpus else 0)


def choose_capacity(settings: Settings, cpus: int, gpus: int, gpu_memory_bytes: int | None = None) -> Capacity:
    """Choose what runs get on a machine; what the settings say counts.

    Args:
        gpu_memory_bytes: of the smallest GPU; None where it is not known, and then a run has a GPU for itself.

    Raises:
        InvalidSettings: one run asks for more cores than there are, so none could ever start.
    """
    wanted = settings.run_cpus
    if wanted is not None and wanted > cpus:
        raise InvalidSettings(
            f"RETORT_RUN_CPUS is {wanted:g}, but the engine has {cpus} cores: a run would wait for ever. "
            f"Set it to {cpus} or less, or RETORT_CPUS to more"
        )
    if not gpus:
        why = "RETORT_RUN_CPUS" if wanted is not None else "without a GPU a run has one core"
        return Capacity(cpus, gpus, wanted or 1.0, 1.0, reason=why)
    reasons = []
    if settings.gpu_share is not None:
        gpu_share = _rounded_down(settings.gpu_share)
        reasons.append("RETORT_GPU_SHARE")
    elif gpu_memory_bytes is None:
        gpu_share = 1.0
        reasons.append("a whole GPU each, for the memory of the GPUs is not known")
    else:
        by_cores = int(cpus / gpus / (wanted or RUN_CORES))
        by_memory = gpu_memory_bytes // RUN_GPU_MEMORY_BYTES
        per_gpu = max(1, min(by_cores, by_memory, RUNS_PER_GPU_MAX))
        gpu_share = _rounded_down(1 / per_gpu)
        reasons.append(
            f"{per_gpu} on each GPU: {gpu_memory_bytes / GiB:.0f} GiB have room for {by_memory} of "
            f"{RUN_GPU_MEMORY_BYTES / GiB:.0f} GiB, {cpus} cores for {by_cores} on each of {gpus}, and "
            f"{RUNS_PER_GPU_MAX} are the most (RETORT_GPU_SHARE sets it)"
        )
    if wanted is None:
        run_cpus = cpus / (gpus * int(1 / gpu_share))
        # More than one are whole threads.
        run_cpus = float(int(run_cpus)) if run_cpus >= 1 else _rounded_down(run_cpus)
        reasons.append("the cores divided among them")
    else:
        run_cpus = wanted
        reasons.append("RETORT_RUN_CPUS")
    return Capacity(cpus, gpus, run_cpus, gpu_share, reason="; ".join(reasons))


def _rounded_down(share: float) -> float:
    # Ray rounds: six times 0.16667 would be more than one GPU.
    return math.floor(share * UNITS + 1e-6) / UNITS
