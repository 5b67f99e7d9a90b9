"""Sharing out of runs: which runs of a job are trained in one process. Light: the engine asks, and loads no torch."""

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Protocol, TypeVar


class HasIndex(Protocol):
    """Anything that stands for a run, by its place in the job's plan."""

    @property
    def index(self) -> int: ...


AnyRun = TypeVar("AnyRun", bound=HasIndex)


def share_out(
    runs: Sequence[AnyRun],
    slots: int,
    largest_group: int,
    alone: Collection[int] = (),
    *,
    batches_of: Callable[[AnyRun], Hashable],
) -> list[list[AnyRun]]:
    """Which of the waiting runs to start now, each list in one process.

    Runs that see the same batches can share a process. They do where there are more of them than slots, and then no
    more than it takes to start all of them.

    Args:
        runs: in the order in which they wait.
        slots: how many processes there is room for.
        largest_group: of runs in one process.
        alone: indices of runs that are not to share one.
        batches_of: equal for runs that see the same batches, see ``Plan.batches_of``.

    Returns:
        At most ``slots`` groups.
    """
    waiting, groups = list(runs), list[list[AnyRun]]()
    batches = {run.index: batches_of(run) for run in runs}
    while waiting and len(groups) < slots:
        first = waiting[0]
        size = 1 if first.index in alone else min(largest_group, -(-len(waiting) // (slots - len(groups))))
        alike = [run for run in waiting[1:] if batches[run.index] == batches[first.index] and run.index not in alone]
        groups.append([first, *alike[: size - 1]])
        taken = {run.index for run in groups[-1]}
        waiting = [run for run in waiting if run.index not in taken]
    return groups
