"""Typed access to Ray: actors and their handles, answers, resources, placement groups. The only file that imports ray.

``ENVIRONMENT`` is set before the import: Ray reads then whether it has to show a token, and not again. Ray's own
functions are annotated in part; those that are not are called here, and nowhere else.

Facts of Ray that shape this package: without an address ``ray.init`` joins whatever cluster it finds; a driver that is
without Ray for a minute is aborted; resources are logical, memory is not limited by them; a share of a GPU is taken
from the fullest GPU that has room for it, so several equal ones fill one GPU before the next.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from workers import signals
from workers.cluster.ray_head import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util import get_placement_group, list_named_actors
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

__all__ = ["ActorUnavailableError", "PlacementGroup", "RayError"]

_NAMESPACE = "retort"


# ------------------------------------------------------------------------------------------------------ connection


def connect(address: str) -> dict[str, Any]:
    """Connect to the Ray at this address as a driver; returns its record of this machine."""
    nodes: Any = ray.nodes
    # Ray puts its own handlers in place when it connects, and none when it leaves.
    with signals.waiting():
        ray.init(address=address, namespace=_NAMESPACE, log_to_driver=True, configure_logging=False)
    [node] = nodes()
    found: dict[str, Any] = node
    return found


def disconnect() -> None:
    """Disconnect: detached actors go on, the others end."""
    with signals.waiting():
        ray.shutdown()


# ---------------------------------------------------------------------------------------------------------- actors


class ActorMethod(Protocol):
    """A method of an actor."""

    def remote(self, *arguments: object) -> "ray.ObjectRef[Any]":
        """Call the method; returns a reference to its answer at once."""


class Handle(Protocol):
    """An actor, seen from outside: the methods of ``workers.cluster.actors``."""

    work: ActorMethod
    gpu_ids: ActorMethod
    answer: ActorMethod
    process: ActorMethod
    stop: ActorMethod
    pause: ActorMethod


def start(
    kind: type,
    *arguments: str | int | list[str],
    cpus: float,
    gpus: float,
    name: str | None = None,
    outlives: bool = False,
    place: PlacementGroupSchedulingStrategy | None = None,
) -> Handle:
    """Start an actor with its share of the machine; it waits, without a process, until that is free.

    Args:
        kind: the actor's class.
        arguments: of its constructor.
        cpus: cores.
        gpus: GPUs, or a share of one.
        name: by which others find it.
        outlives: whether it goes on when the process that has started it ends.
        place: its part of a placement group, see ``place_in``.
    """
    actor_class: Any = ray.remote(kind)
    # Three threads: the work, a question for events, a request to stop.
    options = actor_class.options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=3,
        scheduling_strategy=place,
        name=name,
        lifetime="detached" if outlives else None,
    )
    handle: Handle = options.remote(*arguments)
    return handle


def find(name: str) -> Handle:
    """Find the actor of this name.

    Raises:
        ValueError: there is none.
    """
    get_actor: Any = ray.get_actor
    handle: Handle = get_actor(name)
    return handle


def actor_names() -> list[str]:
    """Names of all actors that have one."""
    return list(list_named_actors())


def end(handle: Handle) -> None:
    """End an actor's process, whatever it is doing; nothing happens if it has ended."""
    kill: Any = ray.kill
    kill(handle)


def own_gpus() -> Sequence[int | str]:
    """The GPUs of this machine that Ray has given to the actor that asks, by its names of them; none on a CPU."""
    ids: Sequence[int | str] = ray.get_gpu_ids()
    return ids


# --------------------------------------------------------------------------------------------------------- answers


def get(reference: Any) -> Any:  # noqa: ANN401  # any answer of an actor
    """Get the answer behind a reference; waits for it.

    Raises:
        ActorUnavailableError: the actor cannot be reached, and may come back.
        RayError: it is gone.
    """
    return ray.get(reference)


def is_ready(reference: Any) -> bool:  # noqa: ANN401  # ray.ObjectRef, which a test need not have
    """Whether an answer is there, or is known to be lost."""
    ready, _ = ray.wait([reference], timeout=0)
    return bool(ready)


def first_ready(references: Sequence[Any], timeout_s: float) -> list[Any]:
    """First of these whose answer is there; none if that takes longer."""
    return list(ray.wait(list(references), num_returns=1, timeout=timeout_s)[0])


# ------------------------------------------------------------------------------------------------------- resources

Resource = Literal["CPU", "GPU"]


def total(kind: Resource) -> float:
    """Cores or GPUs of the whole cluster."""
    ask: Any = ray.cluster_resources
    return float(ask().get(kind, 0.0))


def free(kind: Resource) -> float:
    """Cores or GPUs that nobody holds; of GPUs, the shares of all added up."""
    ask: Any = ray.available_resources
    return float(ask().get(kind, 0.0))


# ------------------------------------------------------------------------------------------------ placement groups


def reserve_places(name: str, count: int, cpus: float, gpu_share: float) -> PlacementGroup:
    """Reserve a detached placement group of ``count`` equal shares of the machine, on as few GPUs as possible."""
    bundle = {"CPU": cpus, "GPU": gpu_share} if gpu_share else {"CPU": cpus}
    reserved: PlacementGroup = placement_group([bundle] * count, strategy="PACK", name=name, lifetime="detached")
    return reserved


def place_in(places: PlacementGroup, rank: int) -> PlacementGroupSchedulingStrategy:
    """One share of a placement group, for ``start``."""
    return PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=rank)


def find_places(name: str) -> PlacementGroup:
    """Find the placement group of this name.

    Raises:
        ValueError: there is none.
    """
    found: PlacementGroup = get_placement_group(name)
    return found


def remove_places(places: PlacementGroup) -> None:
    """Give back a placement group's share of the machine, which it keeps after its actors are gone."""
    remove: Any = remove_placement_group
    remove(places)


def remove_other_places(names: frozenset[str]) -> None:
    """Remove every placement group but those of these names."""
    table: Any = placement_group_table
    for places in table().values():
        if places["state"] != "REMOVED" and places["name"] not in names:
            with contextlib.suppress(ValueError):
                remove_places(get_placement_group(places["name"]))
