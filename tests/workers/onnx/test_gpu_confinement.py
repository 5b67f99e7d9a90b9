"""Whether a teacher on a GPU runs unconfined is decided by what our own network needs there, and by nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, SessionLost, WorkerError
from workers.onnx.sessions import gpu_confinement


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    gpu_confinement.confinement_failure.cache_clear()
    yield
    gpu_confinement.confinement_failure.cache_clear()


def try_with(
    monkeypatch: pytest.MonkeyPatch, confined: WorkerError | None, bare: WorkerError | None = None
) -> list[bool]:
    """Have a try end so, within the confinement and without; returns what is tried."""
    tried: list[bool] = []

    def end(_: Path, *, is_confined: bool) -> None:
        tried.append(is_confined)
        if (error := confined if is_confined else bare) is not None:
            raise error

    monkeypatch.setattr(gpu_confinement, "_try", end)
    return tried


def test_confinement_failure_is_none_where_our_network_runs_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = try_with(monkeypatch, None)
    assert gpu_confinement.confinement_failure() is None
    assert gpu_confinement.confinement_failure() is None
    assert tried == [True]


def test_confinement_failure_is_the_reason_where_it_runs_without_confinement_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = try_with(monkeypatch, InvalidTeacher("the driver asks for io_uring"))
    assert gpu_confinement.confinement_failure() == "the driver asks for io_uring"
    assert tried == [True, False, True]


def test_confinement_failure_that_passes_by_leaves_the_confinement(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def end(_: Path, *, is_confined: bool) -> None:
        tried.append(is_confined)
        if tried == [True]:
            raise DeviceUnavailable("the process ended with exit status 1")

    monkeypatch.setattr(gpu_confinement, "_try", end)
    assert gpu_confinement.confinement_failure() is None
    assert tried == [True, False, True]


@pytest.mark.parametrize("error", [OutOfMemory("the GPU is full"), SessionLost("killed")])
def test_confinement_failure_is_not_found_where_a_process_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, error: WorkerError
) -> None:
    """It is found out once more, when there is room."""
    try_with(monkeypatch, error)
    with pytest.raises(type(error)):
        gpu_confinement.confinement_failure()
    try_with(monkeypatch, None)
    assert gpu_confinement.confinement_failure() is None


def test_confinement_failure_of_a_gpu_that_does_not_work_at_all_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    try_with(monkeypatch, InvalidTeacher("no"), DeviceUnavailable("no driver"))
    with pytest.raises(DeviceUnavailable, match="no driver"):
        gpu_confinement.confinement_failure()
