"""Connection to this machine's Ray: its head is found alive or started, and this process becomes a driver of it."""

import os
from pathlib import Path
from typing import Any

from workers.cluster import ray_api
from workers.cluster.head_folder import HeadFailed
from workers.cluster.ray_head import RayHead


class RayConnection:
    """This machine's Ray, found alive or started; it goes on without the caller until it is closed.

    Args:
        data_dir: whose jobs it works on; one head for each, see ``ray_head``.
        cpus: CPU cores to use; None takes all.
        gpus: GPUs to use; None takes all that Ray sees.

    Raises:
        HeadFailed: Ray does not start.
    """

    def __init__(self, data_dir: Path, cpus: float | None = None, gpus: int | None = None) -> None:
        whole = None if cpus is None else max(1, int(cpus))
        try:
            node = self._connect(data_dir, whole, gpus)
        except HeadFailed:
            raise
        except Exception:
            # One that was found may be dying; the second one is new.
            node = self._connect(data_dir, whole, gpus)
        self.cpus = int(node["Resources"].get("CPU", 1))
        self.gpus = int(node["Resources"].get("GPU", 0))

    def _connect(self, data_dir: Path, cpus: int | None, gpus: int | None) -> dict[str, Any]:
        """Find or start Ray and become its driver; returns its record of this machine. If that fails, it is ended."""
        self._head = RayHead(data_dir, cpus, gpus, os.environ.get("RAY_AUTH_TOKEN"))
        os.environ["RAY_AUTH_TOKEN"] = self._head.head.token
        try:
            return ray_api.connect(self._head.head.address)
        except Exception:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether Ray is there. If not, nothing here may be asked; a new cluster can be started."""
        return self._head.is_alive

    def close(self) -> None:
        """End Ray with every process that it has started."""
        ray_api.disconnect()
        self._head.close()

    def leave(self) -> None:
        """Disconnect, without ending Ray: its actors go on, for the next engine."""
        ray_api.disconnect()
        self._head.leave()
