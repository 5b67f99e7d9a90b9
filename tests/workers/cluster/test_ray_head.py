"""Ray's head as processes of its own: found again, started anew after a kill, gone with all it has left."""

import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.cluster import head_folder, ray_keeper
from workers.cluster.head_folder import machine_folder
from workers.cluster.ray_head import RayHead, describe
from workers.errors import WorkerError

pytestmark = pytest.mark.timeout(600)


def kill_keeper(folder: Path) -> None:
    os.kill(int((folder / "keeper.lock").read_text()), signal.SIGKILL)


def test_ray_head_is_found_again_and_one_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    folder = machine_folder(tmp_path)
    first = RayHead(tmp_path, cpus=1, gpus=0)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert first.is_alive
    assert describe(tmp_path) == first.head.address
    # As systemd-tmpfiles asks before it removes what is old; other cleaners go by times alone.
    number = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(number)
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


def test_ray_head_keeps_its_files_from_looking_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever cleans /tmp would take the locks, by which it is known to live."""
    monkeypatch.setattr(ray_keeper, "_TOUCH_S", 0.0)
    (tmp_path / "ray").mkdir()
    paths = [tmp_path / name for name in ("keeper.lock", "ray/log", "ray/link", "ray/socket")]
    for path in paths[:2]:
        path.touch()
    paths[2].symlink_to(tmp_path / "gone")
    ten_days_ago = time.time() - 10 * 86400
    with socket.socket(socket.AF_UNIX) as listening, subprocess.Popen(["sleep", "600"]) as ray:
        listening.bind(str(paths[3]))
        for path in (*paths, tmp_path / "ray", tmp_path):
            os.utime(path, (ten_days_ago, ten_days_ago), follow_symlinks=False)
        ending = threading.Event()
        keeper = threading.Thread(target=ray_keeper._keep, args=(tmp_path, ray, ending))
        keeper.start()
        while tmp_path.stat().st_mtime < ten_days_ago + 1 or any(
            min(path.lstat().st_mtime, path.lstat().st_atime) < ten_days_ago + 1 for path in paths
        ):
            time.sleep(0.01)
        ending.set()
        keeper.join()
        ray.kill()


class Listing:
    """What ``os.scandir`` returns, of a folder that has been read to its end."""

    def __init__(self, entries: Iterator[os.DirEntry[str]]) -> None:
        self._entries = iter([*entries])

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> "Listing":
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self._entries)


def test_ray_keeper_survives_a_folder_that_ray_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would be Ray's."""
    gone, link = tmp_path / "gone", tmp_path / "session_latest"
    link.symlink_to(tmp_path)
    os.utime(link, (0, 0), follow_symlinks=False)
    listed = os.scandir

    def scandir(path: str | Path) -> Listing:
        if Path(path) != tmp_path:
            return Listing(listed(path))
        gone.mkdir()
        found = Listing(listed(path))
        gone.rmdir()
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    head_folder.touch_all(tmp_path)
    assert link.lstat().st_mtime > 0


def test_head_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = machine_folder(tmp_path)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(WorkerError, match="open to others"):
            RayHead(tmp_path, cpus=1, gpus=0)
    finally:
        folder.rmdir()
