"""What the workers do on a disk that is full; run in a mount namespace of its own, where FOLDER is a small disk.

``python -m tests.support.full_disk FOLDER`` writes a checkpoint and artifacts where there is room for neither.
``python -m tests.support.full_disk FOLDER JOB PREPARED`` runs the job of the file JOB, whose datasets lie in the data
folder PREPARED, from a disk without a free page to its end, a little more room at every refusal.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from store import StoreError
from tests.support.store_cases import digests
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.errors import WorkerError
from workers.pipeline import run_job
from workers.students.build import build_student
from workers.training.checkpoints.checkpoint import save_checkpoint
from workers.training.result import artifacts_folder, state_tensors

_STEP_BYTES = 200 << 10


def on_a_small_disk(size: str, folder: Path, *arguments: Path, module: str = __name__) -> dict[str, Any]:
    """What this module, or another, reports of a disk of that size, mounted at ``folder``."""
    command = ["unshare", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, "mount -t tmpfs t /mnt"], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && exec "$0" -m {module} "$@"'
    command += [mount, sys.executable, str(folder), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def run_outputs(folders: Folders, out: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of each cache (but when it was used), and of each run's weights."""
    files = {cache.name: digests(cache) for cache in folders.caches.glob("[0-9a-f]*")}
    for cache in files.values():
        del cache["LAST_USED"]
    weights = {path.parts[-3]: path for path in out.glob("run-*/artifacts/student.safetensors")}
    return files | {"weights": {run: hashlib.sha256(path.read_bytes()).hexdigest() for run, path in weights.items()}}


def write_a_run(folder: Path) -> dict[str, object]:
    """How a checkpoint and artifacts are refused, and what is left of them."""
    network = build_student("cnn_m", 10, in_channels=1, image_side=8)

    def write_artifacts() -> None:
        with artifacts_folder(folder) as partial:
            (partial / "student.safetensors").write_bytes(save(state_tensors(network)))

    report: dict[str, object] = {}
    for kind, write in (
        ("checkpoint", lambda: save_checkpoint(folder, {"network": network.state_dict()})),
        ("artifacts", write_artifacts),
    ):
        try:
            write()
            error, message = "", ""
        except WorkerError as raised:
            error, message = type(raised).__name__, str(raised)
        left = [path.name for path in folder.rglob("*")]
        report[kind] = {"error": error, "message": message, "left": left}
    return report


def run_until_it_fits(folder: Path, job: JobSpec, prepared: Path) -> dict[str, object]:
    """The job's refusals, each with what was left half-written, and what it has made in the end."""
    folders = Folders(data_dir=folder / "data", data_root=folder)
    shutil.copytree(prepared / "datasets", folders.datasets)
    out = folder / "out"
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
    refusals = []
    while True:
        try:
            outcome = run_job(job, folders, out)
            break
        except (StoreError, WorkerError) as error:
            names = [path.name for path in folder.rglob("*")]
            uncommitted = [
                cache.name
                for cache in folders.caches.glob("[0-9a-f]*")
                if len([path for path in cache.glob("*/c/**/*") if path.is_file()])
                != 6 * len(list(cache.glob("commits/*.json")))
            ]
            refusals.append(
                {
                    "error": type(error).__name__,
                    "message": str(error),
                    "blocks": sum(1 for _ in folders.caches.glob("*/commits/*.json")),
                    "left": [name for name in names if "partial" in name or name.startswith(".creating")] + uncommitted,
                }
            )
            os.truncate(ballast, ballast.stat().st_size - _STEP_BYTES)
    return {"refusals": refusals, "forwards": outcome.teacher_forwards, "outputs": run_outputs(folders, out)}


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        report = write_a_run(folder)
    else:
        job = JobSpec.model_validate_json(Path(sys.argv[2]).read_text())
        report = run_until_it_fits(folder, job, Path(sys.argv[3]))
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
