"""The fake CUDA device: what it counts, what it refuses, and how processes are put on it."""

import ctypes
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fake_cuda.counts import Counts, counting
from tests.fake_cuda.processes import FakeCuda, FakeFailed
from workers.devices import choose_device

pytestmark = pytest.mark.fake_cuda

# ------------------------------------------------------------------------------------------------------------- copies


def _copies() -> dict[str, dict[str, int]]:
    """How often each way to copy is counted as a copy, as one that blocks, and as a synchronisation."""
    pageable, there = torch.randn(1000), torch.zeros(1000, device="cuda")
    pinned = pageable.pin_memory()
    ways: dict[str, Callable[[], object]] = {
        "pinned to device": lambda: pinned.to("cuda", non_blocking=True),
        "pinned to device, waiting": lambda: pinned.to("cuda"),
        "pageable to device": lambda: pageable.to("cuda", non_blocking=True),
        "pageable to device, waiting": lambda: pageable.to("cuda"),
        "device to pinned": lambda: pinned.copy_(there, non_blocking=True),
        "device to host, waiting": there.cpu,
        "item": there[0].item,
        "on the device": there.clone,
    }
    return {name: _counted(way) for name, way in ways.items()}


def _counted(act: Callable[[], object]) -> dict[str, int]:
    act()
    with counting() as counts:
        act()
    return {
        "copies": counts.copies_to_device + counts.copies_to_host + counts.copies_on_device,
        "blocking": counts.blocking_copies,
        "synchronisations": counts.synchronisations,
    }


def test_fake_cuda_tells_blocking_copies_from_others(seen: dict[str, Any]) -> None:
    free, hidden, waiting = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    assert {name: tuple(numbers.values()) for name, numbers in seen["copies"].items()} == {
        "pinned to device": free,
        "pinned to device, waiting": waiting,
        "pageable to device": hidden,
        "pageable to device, waiting": waiting,
        "device to pinned": free,
        "device to host, waiting": waiting,
        "item": waiting,
        "on the device": free,
    }


def _readings() -> dict[str, list[float]]:
    given = torch.randn(700)
    there = given.cuda()
    seven = torch.tensor(7.0).cuda()
    copied, address = seven.item(), seven.data_ptr()
    del seven
    total = there.sum()
    assert total.data_ptr() == address
    return {
        "a copied scalar": [copied],
        "a scalar computed in its place": [0.0 < total.item() < 1e-44],
        "what was copied": (there.cpu() - given)[:3].tolist(),
        "zeros": [torch.zeros((), dtype=torch.float64, device="cuda").item()],
        "computed": there.sin()[:5].tolist(),
        "a computed flag": [bool(torch.isfinite(there).all())],
        "a computed count": [torch.nonzero(there).shape[0]],
    }


def test_fake_cuda_reads_numbers_where_nothing_was_computed(seen: dict[str, Any]) -> None:
    assert seen["readings"] == {
        "what was copied": [0.0, 0.0, 0.0],
        "zeros": [0.0],
        "computed": [0.0] * 5,
        "a copied scalar": [7.0],
        "a scalar computed in its place": [True],
        "a computed flag": [True],
        "a computed count": [1],
    }


# ------------------------------------------------------------------------------------------------------------- graphs


class _Step:
    """A training step of a small network, with all that it needs on the device."""

    def __init__(self) -> None:
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8192, 10)
        ).cuda()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.images, self.labels = torch.zeros(4, 3, 32, 32, device="cuda"), torch.zeros(4, device="cuda").long()

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss

    def warm_up(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)


def _numbers(counts: Counts) -> dict[str, int]:
    wanted = ("kernels", "library_calls", "graph_launches", "captured_kernels", "captured_library_calls", "launches")
    return {name: getattr(counts, name) for name in wanted}


def _replayed_step() -> dict[str, dict[str, int]]:
    step, graph = _Step(), torch.cuda.CUDAGraph()
    step.warm_up()
    with counting() as eager:
        step()
    with counting() as capture, torch.cuda.graph(graph):
        step()
    with counting() as replay:
        graph.replay()
    return {"eager": _numbers(eager), "capture": _numbers(capture), "replay": _numbers(replay)}


def test_fake_cuda_graph_of_a_step_is_one_launch(seen: dict[str, Any]) -> None:
    of = seen["replayed step"]
    # Dropout's seed and offset are written before each replay.
    assert of["replay"] == {**dict.fromkeys(of["replay"], 0), "kernels": 2, "graph_launches": 1, "launches": 3}
    assert of["capture"]["captured_kernels"] >= of["eager"]["kernels"] > 20
    assert of["capture"]["captured_library_calls"] == of["eager"]["library_calls"] > 3
    assert of["capture"]["kernels"] == of["capture"]["graph_launches"] == 0


def _replayed_copies() -> list[list[float]]:
    """What a graph of a copy from pinned memory, one on the device and zeroing leaves: before it runs, and after."""
    given, graph = torch.tensor([1.0, 2.0, 3.0]).pin_memory(), torch.cuda.CUDAGraph()
    there, further, zeroed = (torch.full((3,), -1.0).cuda() for _ in range(3))
    with torch.cuda.graph(graph):
        there.copy_(given, non_blocking=True)
        further.copy_(there)
        zeroed.zero_()
    seen = [further.tolist() + zeroed.tolist()]
    for _ in range(2):
        graph.replay()
        seen.append(further.tolist() + zeroed.tolist())
        given.add_(1)
    return seen


def test_fake_cuda_graph_does_its_copies_at_each_replay(seen: dict[str, Any]) -> None:
    before, first, second = seen["replayed copies"]
    assert before == [-1.0] * 6
    assert first == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    assert second == [2.0, 3.0, 4.0, 0.0, 0.0, 0.0]


class _Captured:
    """Things on the device that acts in a capture use."""

    def __init__(self) -> None:
        self.there, self.pageable = torch.zeros(8, device="cuda"), torch.zeros(8)
        self.pinned = self.pageable.pin_memory()
        self.side, self.event = torch.cuda.Stream(), torch.cuda.Event()

    def on_side(self, *, joins: bool) -> None:
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            self.there.add_(1)
        if joins:
            torch.cuda.current_stream().wait_stream(self.side)

    def query(self) -> None:
        self.event.record()
        self.event.query()

    def wait_for_uncaptured(self) -> None:
        self.event.record(self.side)
        torch.cuda.current_stream().wait_event(self.event)

    def in_default_stream(self) -> None:
        with torch.cuda.stream(torch.cuda.default_stream()):
            self.there.add_(1)

    def in_another_thread(self, act: Callable[[], object]) -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()


def _runtime(name: str, *arguments: object) -> None:
    """Call the CUDA runtime by itself, as a library beside torch might."""
    code = getattr(ctypes.CDLL(None), name)(*arguments)
    if code:
        raise RuntimeError(f"{name}: CUDA error {code}")


def _runtime_copy(name: str, captured: _Captured, *stream: object) -> None:
    there, here = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (captured.there, captured.pageable))
    _runtime(name, there, here, ctypes.c_size_t(captured.there.nbytes), 1, *stream)


def _capturing() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


FORBIDDEN: dict[str, tuple[Callable[[_Captured], object], str]] = {
    "synchronise the stream": (lambda c: torch.cuda.current_stream().synchronize(), "when stream is capturing"),
    "synchronise the device": (lambda c: torch.cuda.synchronize(), "when stream is capturing"),
    "synchronise another stream": (lambda c: c.side.synchronize(), "when stream is capturing"),
    "query the stream": (lambda c: torch.cuda.current_stream().query(), "when stream is capturing"),
    "item": (lambda c: c.there[0].item(), "when stream is capturing"),
    "copy from pageable memory": (lambda c: c.there.copy_(c.pageable, non_blocking=True), "capturing|unless the CPU"),
    "copy to pageable memory": (lambda c: c.pageable.copy_(c.there, non_blocking=True), "capturing|unless the CPU"),
    "copy and wait": (lambda c: c.there.cpu(), "capturing|unless the CPU"),
    "query a captured event": (_Captured.query, "on an event last recorded in a capturing stream"),
    "wait for uncaptured work": (_Captured.wait_for_uncaptured, "dependency created on uncaptured work"),
    "leave work unjoined": (lambda c: c.on_side(joins=False), "unjoined work"),
    "use the default stream": (_Captured.in_default_stream, "legacy stream"),
    # torch refuses some of the above before CUDA does.
    "cudaMemcpy": (lambda c: _runtime_copy("cudaMemcpy", c), "CUDA error 900"),
    "cudaMemcpyAsync": (lambda c: _runtime_copy("cudaMemcpyAsync", c, _capturing()), "CUDA error 900"),
    "cudaMalloc": (
        lambda c: _runtime("cudaMalloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(512)),
        "CUDA error 900",
    ),
}
ALLOWED: dict[str, Callable[[_Captured], object]] = {
    "compute": lambda c: c.there.add_(1),
    "allocate in the graph's pool": lambda c: torch.zeros(50_000_000, device="cuda").add_(1),
    "copy from pinned memory": lambda c: c.there.copy_(c.pinned, non_blocking=True),
    "copy to pinned memory": lambda c: c.pinned.copy_(c.there, non_blocking=True),
    "fork and join": lambda c: c.on_side(joins=True),
    "record an event": lambda c: (c.there.add_(1), c.event.record()),
}


def _attempt(name: str) -> str:
    """What is said of a capture in which this is done, or an empty text."""
    act = FORBIDDEN[name][0] if name in FORBIDDEN else ALLOWED[name]
    captured, graph = _Captured(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured.there.mul_(2)
            act(captured)
    except RuntimeError as error:
        return f"{error.__context__}; {error}"
    graph.replay()
    return ""


@pytest.mark.parametrize("act", FORBIDDEN)
def test_fake_cuda_capture_refuses_what_cuda_forbids(act: str, seen: dict[str, Any]) -> None:
    said = seen["attempts"][act]
    assert said, "the capture succeeded"
    assert re.search(FORBIDDEN[act][1], said), said


@pytest.mark.parametrize("act", ALLOWED)
def test_fake_cuda_capture_allows_what_cuda_allows(act: str, seen: dict[str, Any]) -> None:
    assert not seen["attempts"][act]


def _everything() -> dict[str, Any]:
    return {
        "copies": _copies(),
        "readings": _readings(),
        "replayed step": _replayed_step(),
        "replayed copies": _replayed_copies(),
        # What is allowed works after all that has failed, too.
        "attempts": {name: _attempt(name) for name in [*ALLOWED, *FORBIDDEN, *ALLOWED]},
    }


@pytest.fixture(scope="module")
def seen(fake_cuda: FakeCuda) -> dict[str, Any]:
    """What the functions above have seen on the fake device, in one process."""
    return fake_cuda.call(_everything)


# ------------------------------------------------------------------------------------------------------------ machines


def _devices() -> dict[str, Any]:
    there = torch.zeros(4, device="cuda:2").add_(1)
    bus = torch.cuda.get_device_properties(2).pci_bus_id
    return {"count": torch.cuda.device_count(), "index": there.device.index, "bus": bus}


def _fill() -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info()
    held = torch.empty(600 << 20, dtype=torch.uint8, device="cuda")
    try:
        torch.empty(600 << 20, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        said = str(error)
    del held
    torch.empty(900 << 20, dtype=torch.uint8, device="cuda")
    return {"free": free >> 20, "total": total >> 20, "said": said, **_chosen()}


def _devices_and_memory() -> dict[str, Any]:
    return {"devices": _devices(), "memory": _fill()}


@pytest.fixture(scope="module")
def small(fake_cuda: FakeCuda) -> dict[str, Any]:
    """What a process sees of some of eight devices with a gibibyte each."""
    settings = {"FAKE_CUDA_DEVICES": "8", "CUDA_VISIBLE_DEVICES": "1,5,6,7", "FAKE_CUDA_MEMORY_MIB": "1024"}
    return fake_cuda.call(_devices_and_memory, **settings)


def test_fake_cuda_has_the_devices_that_are_visible(small: dict[str, Any]) -> None:
    assert small["devices"] == {"count": 4, "index": 2, "bus": 7}


def test_fake_cuda_memory_runs_out(small: dict[str, Any]) -> None:
    answer = small["memory"]
    assert (answer["free"], answer["total"]) == (1024, 1024)
    assert "CUDA out of memory. Tried to allocate 600.00 MiB" in answer["said"]
    assert (answer["device"], answer["why"]) == ("cuda:0", "CUDA device Fake H200")


def _chosen() -> dict[str, str]:
    device, why = choose_device("auto", has_gpu_share=True)
    return {"device": str(device), "why": why}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FAKE_CUDA_DRIVER", "12080", r"built for CUDA 13.*too old \(found version 12080\)"),
        ("FAKE_CUDA_DRIVER", "0", r"built for CUDA 13.*Found no NVIDIA driver"),
        ("FAKE_CUDA_DEVICES", "0", r"[Nn]o CUDA"),
    ],
)
def test_choose_device_says_what_a_promised_gpu_lacks(
    variable: str, value: str, said: str, fake_cuda: FakeCuda
) -> None:
    with pytest.raises(FakeFailed, match=f"DeviceUnavailable: a GPU was promised.*{said}.*RETORT_GPUS=0"):
        fake_cuda.call(_chosen, **{variable: value})
