"""Ray's head as processes of its own: found again, started anew after a kill, gone with all it has left."""

import os
import signal
import time
from pathlib import Path

import pytest

from workers.errors import WorkerError
from workers.ray_head import RayHead, describe, machine_folder

pytestmark = pytest.mark.timeout(600)


def kill_keeper(folder: Path) -> None:
    os.kill(int((folder / "keeper.lock").read_text()), signal.SIGKILL)


def test_a_head_is_found_again_and_one_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    folder = machine_folder(tmp_path)
    first = RayHead(tmp_path, cpus=1, gpus=0)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert first.is_alive
    assert describe(tmp_path) == first.head.address
    first.leave()
    second = RayHead(tmp_path, cpus=1, gpus=0)
    assert second.head == first.head

    # Killed with its engine: what it had written down is still there.
    kill_keeper(folder)
    while second.is_alive:
        time.sleep(0.01)
    second.leave()
    assert (folder / "head.json").exists()
    assert describe(tmp_path) is None
    third = RayHead(tmp_path, cpus=1, gpus=0)
    assert third.head.address != first.head.address
    assert third.is_alive
    third.close()
    assert not folder.exists()


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    folder = machine_folder(tmp_path)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(WorkerError, match="open to others"):
            RayHead(tmp_path, cpus=1, gpus=0)
    finally:
        folder.rmdir()
