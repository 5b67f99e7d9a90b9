"""Pool of inference actors: what each of its workers is told; without Ray, which ``test_ray_cluster`` has."""

from pathlib import Path

import pytest

from tests.support.store_cases import make_spec
from workers.cluster.inference_pool import InferencePool
from workers.config.task import Folders, InferenceTask
from workers.config.teacher import Preprocessing, TeacherSpec


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (8, 1)])
def test_inference_pool_gives_a_session_the_memory_of_one_of_as_many_as_there_are_cores(
    tmp_path: Path, workers: int, threads: int
) -> None:
    """Cores that this cache has no blocks for may infer for other jobs; its own workers have them all as threads."""
    task = InferenceTask(
        folders=Folders(data_dir=tmp_path, data_root=tmp_path),
        teacher=TeacherSpec(path=tmp_path / "teacher.onnx", preprocessing=Preprocessing()),
        spec=make_spec(),
        threads=1,
    )
    told = InferencePool(8, 0.0, cpus=8)._on_its_device(task, workers)
    assert (told.sessions, told.threads) == (8, threads)
