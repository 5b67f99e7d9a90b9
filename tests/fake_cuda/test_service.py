"""The whole service over HTTP on a GPU node, as far as the fake device shows it: four runs share a GPU.

The caches are filled before, on the CPU: ONNX Runtime opens no session on the fake.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_cuda.processes import FakeCuda
from tests.service.engine.test_engine_handover import in_state, one_more_epoch, soon
from tests.support.digits import Digits
from tests.support.processes import Processes, given_caches, job_of, pid_of, running_service, uploaded

pytestmark = [pytest.mark.fake_cuda, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def service(fake_cuda: FakeCuda, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    with running_service(data_dir, fake_cuda.environment(), GPUS="1", GPU_SHARE="0.5") as processes:
        yield processes


@pytest.fixture(scope="module")
def teacher_id(service: Processes, digits: Digits) -> str:
    """The digits' teacher, with its caches."""
    given_caches(service, digits)
    return uploaded(service, digits)


def _only_run(service: Processes, job: dict[str, Any]) -> dict[str, Any]:
    [run] = service.client.runs(job["id"])
    return run


def test_service_trains_a_job_of_four_runs_on_shares_of_a_gpu(service: Processes, teacher_id: str) -> None:
    job = service.client.submit({**job_of(teacher_id, "ctkd", "mlld", epochs=1), "seeds": [0, 1]})
    soon(in_state(service.client, job["id"], "succeeded"))
    runs = list(service.client.runs(job["id"]))
    assert [run["state"] for run in runs] == ["succeeded"] * 4
    assert all(run["result"]["environment"]["device"].startswith("cuda") for run in runs), runs
    # The runs of one seed saw the same batches, in one process.
    groups = {(run["seed"], pid_of(service, run, 1)) for run in runs}
    assert len(groups) < len(runs)


@pytest.mark.slow
def test_service_survives_a_killed_actor_and_pauses_resumes_and_cancels_on_a_gpu(
    service: Processes, teacher_id: str
) -> None:
    """As on the CPU, in ``test_engine`` and ``test_engine_handover``, and with a GPU's checkpoints (``test_runs``)."""
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", epochs=10_000))
    run = _only_run(service, job)
    one_more_epoch(client, run["id"])

    os.kill(pid_of(service, run, 1), signal.SIGKILL)
    soon(lambda: _only_run(service, job)["attempt"] == 2)
    one_more_epoch(client, run["id"])

    client.pause(job["id"])
    soon(in_state(client, job["id"], "paused"))
    client.resume(job["id"])
    one_more_epoch(client, run["id"])

    client.cancel(job["id"])
    soon(in_state(client, job["id"], "cancelled"))
