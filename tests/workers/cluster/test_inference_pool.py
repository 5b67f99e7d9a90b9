"""Pool of inference actors: what each of its workers is told; without Ray, which ``test_ray_cluster`` has."""

from pathlib import Path

import pytest

from tests.support.store_cases import make_spec
from workers.cluster.inference_pool import InferencePool
from workers.config.task import Folders, InferenceTask
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.onnx.sessions import session_memory


def task_in(folder: Path) -> InferenceTask:
    return InferenceTask(
        folders=Folders(data_dir=folder, data_root=folder),
        teacher=TeacherSpec(path=folder / "teacher.onnx", preprocessing=Preprocessing()),
        spec=make_spec(),
        threads=1,
    )


@pytest.mark.parametrize(("size_gib", "workers"), [(0, 8), (3, 5), (7, 2), (40, 1)])
def test_inference_pool_on_the_cpu_has_as_many_workers_as_the_weights_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_gib: int, workers: int
) -> None:
    """Half of the memory is for sessions; on GPUs the weights are not in it."""
    monkeypatch.setattr(session_memory, "memory_bytes", lambda: 32 << 30)
    task = task_in(tmp_path)
    with task.teacher.path.open("wb") as file:
        file.truncate(size_gib << 30)
    assert InferencePool(8, 0.0, cpus=8)._count(task, 100) == workers
    assert InferencePool(8, 0.5, cpus=8)._count(task, 100) == 8


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (8, 1)])
def test_inference_pool_gives_a_session_the_memory_of_one_of_as_many_as_there_are_cores(
    tmp_path: Path, workers: int, threads: int
) -> None:
    """Cores that this cache has no blocks for may infer for other jobs; its own workers have them all as threads."""
    told = InferencePool(8, 0.0, cpus=8)._on_its_device(task_in(tmp_path), workers)
    assert (told.sessions, told.threads) == (8, threads)
