"""Free cores and GPUs, from what each process of the cluster holds: what fits, and for whom a GPU is kept. Pure.

The engine starts only what fits by these books, so that Ray never has to queue a run that is said to run. A share
of a GPU has to be free on one GPU: two halves on two of them are no whole one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.cluster.outcomes import Share
from workers.texts import some_of

# Ray counts in ten-thousandths, and so do the books: sums of floats would say that three thirds are less than one.
UNITS = 10_000
_NAMED_MAX = 4


@dataclass(frozen=True)
class Need:
    """Need of a run: so many processes, each with cores and with a share of one GPU (0 is the CPU)."""

    processes: int
    cpus: float
    gpu_share: float = 0.0


@dataclass
class _Gpu:
    """One GPU: what is free of it in ten-thousandths, and who has the rest."""

    free: int = UNITS
    holders: list[str] = field(default_factory=list)


class FreeResources:
    """Free cores and GPUs of the cluster; ``take`` gives some of it away, ``keep`` sets some aside.

    What has been asked of Ray and fits counts as held, for Ray may place it at any moment. What fits nowhere waits
    there; whoever waits there for a whole GPU and has none has the emptiest kept for it. A process that has not said
    yet on which GPU it is counts as being on the emptiest one, so that a whole GPU is given away only where one is
    surely empty.

    Args:
        cpus, gpus: of the cluster.
        held: by whom, in words for a person, and what each of its processes holds or has asked for.

    Attributes:
        is_placed: whether every process has said on which GPU it is.
    """

    def __init__(self, cpus: int, gpus: int, held: Iterable[tuple[str, Share]] = ()) -> None:
        self._cpus = cpus * UNITS
        self._gpus = [_Gpu() for _ in range(gpus)]
        self._all_gpus = [*self._gpus]
        self.is_placed = True
        by_id: dict[str, _Gpu] = {}
        unplaced, waiting = [], dict[str, None]()
        for holder, share in held:
            if share.gpu == 0.0 or not self._gpus:
                self._cpus -= _units(share.cpus)
            elif share.gpu_id is None:
                unplaced.append((holder, share))
            else:
                gpu = by_id.setdefault(share.gpu_id, self._gpus[min(len(by_id), gpus - 1)])
                self._cpus -= _units(share.cpus)
                gpu.free -= _units(share.gpu)
                gpu.holders.append(holder)
        # The largest first: others may be anywhere beside it.
        for holder, share in sorted(unplaced, key=lambda each: -each[1].gpu):
            emptiest = max(self._gpus, key=lambda gpu: gpu.free)
            if emptiest.free >= _units(share.gpu):
                self.is_placed = False
                self._cpus -= _units(share.cpus)
                emptiest.free -= _units(share.gpu)
                emptiest.holders.append(holder)
            elif share.gpu == 1.0:
                waiting.setdefault(holder)
        for holder in waiting:
            if self._gpus and not any(holder in gpu.holders for gpu in self._all_gpus):
                self.keep(Need(1, 0.0, 1.0))

    def has_cores(self, need: Need) -> bool:
        """Whether so many cores are free."""
        return need.processes * _units(need.cpus) <= self._cpus

    def fits(self, need: Need) -> bool:
        """Whether it could start now."""
        if not self.has_cores(need):
            return False
        share = _units(need.gpu_share)
        return not share or sum(gpu.free // share for gpu in self._gpus) >= need.processes

    def take(self, need: Need) -> None:
        """Count it as held; it fits. A share goes where Ray puts it: on the fullest GPU that has room."""
        self._cpus -= need.processes * _units(need.cpus)
        share = _units(need.gpu_share)
        for _ in range(need.processes if share else 0):
            fullest = min((gpu for gpu in self._gpus if gpu.free >= share), key=lambda gpu: gpu.free)
            fullest.free -= share

    def keep(self, need: Need) -> None:
        """Set the emptiest GPUs aside for it, one for each process: nobody else is put there, so they become empty."""
        for gpu in sorted(self._gpus, key=lambda gpu: -gpu.free)[: need.processes]:
            self._gpus.remove(gpu)

    def why_not(self, need: Need) -> str:
        """Reason why there is no whole GPU for each of its processes, as a part of a sentence with the holders."""
        whole = "a whole GPU" if need.processes == 1 else f"{need.processes} whole GPUs"
        used = [gpu for gpu in self._all_gpus if gpu.free < UNITS]
        names = sorted({name for gpu in used for name in gpu.holders})
        return (
            f"waits for {whole}: {len(used)} of {len(self._all_gpus)} are partly or wholly used by "
            f"{some_of(names, _NAMED_MAX)}"
        )


def _units(share: float) -> int:
    return round(share * UNITS)
