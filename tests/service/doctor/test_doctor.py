"""``retort doctor`` against things that are really broken: what it finds, and that it says what to do."""

import json
import os
import resource
import shutil
import site
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text, update

from service.cli.processes.supervisor import free_port
from service.db.database import Database
from service.db.models import EngineRecord
from service.doctor import CHECKS, installation, machine, packages
from service.doctor.finding import Check, Finding, run_checks
from service.gpus import GpuReport
from service.operations.data_dir import STAGING
from service.settings import Settings
from tests.support.service_helpers import Api, PostgresServer, make_settings, new_database

pytest_plugins = ["tests.support.service_fixtures"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a service whose database is migrated, and which does not run."""
    settings = make_settings(tmp_path, port=free_port())
    settings.make_folders()
    new_database(settings.database)
    return settings


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


def is_bad(finding: Finding, status: str, *words: str) -> None:
    """It has this status, says all of this, and gives advice."""
    assert finding.status == status, finding
    assert finding.advice, finding
    for word in words:
        assert word in f"{finding.found} -> {finding.advice}", finding


def is_ok(finding: Finding, *words: str) -> None:
    assert finding.status == "ok", finding
    assert not finding.advice, finding
    for word in words:
        assert word in finding.found, finding


# ----------------------------------------------------------------------------------------------------- the command


def test_doctor_looks_at_everything_else_without_the_engines_packages(settings: Settings, tmp_path: Path) -> None:
    """As in the image of the API: whatever the engine alone needs is not installed, and that is said."""
    absent = (
        "torch",
        "torchvision",
        "ray",
        "onnxruntime",
        "sklearn",
        "simplejpeg",
        "PIL",
        "pillow",
        "nvidia",
    )
    packages_dir = tmp_path / "site"
    packages_dir.mkdir()
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.lower().startswith(absent):
            (packages_dir / entry.name).symlink_to(entry)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{packages_dir}:{ROOT}",
        "RETORT_DATA_DIR": str(settings.data_dir),
        "RETORT_DATA_ROOT": str(settings.data_root),
        "RETORT_DISK_FLOOR_BYTES": "1",
        "RETORT_PORT": str(settings.port),
    }
    line = [os.path.realpath(sys.executable), "-s", "-m", "service.cli", "--json", "doctor"]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    findings = {check["check"]: check for check in document["checks"]}
    assert list(findings) == [check.name for check in CHECKS]
    for name in ("ray", "torch", "onnxruntime"):
        assert findings[name]["status"] == "warn"
        assert findings[name]["found"] == "not installed here: the engine needs it"
        assert "pip install" in findings[name]["advice"]
    assert findings["migrations"]["found"] == "the database is at the newest one"
    for check in findings.values():
        assert bool(check["advice"]) == (check["status"] != "ok"), check

    broken = subprocess.run(
        [arg for arg in line if arg != "--json"],
        env={**environment, "RETORT_DATABASE_URL": f"postgresql://postgres:geheim@/retort?host={tmp_path}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert broken.returncode == 1, broken.stderr
    told = [line.split(maxsplit=2) for line in broken.stdout.splitlines()]
    assert ["fail", "database"] in [words[:2] for words in told]
    assert "-> start the server, or mend RETORT_DATABASE_URL" in broken.stdout
    assert "geheim" not in broken.stdout + broken.stderr


def test_doctor_ends_a_check_that_hangs(settings: Settings) -> None:
    """A server that accepts and never answers; one check's crash is its own."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dead = changed(settings, database_url=f"postgresql://postgres@127.0.0.1:{port}/retort")

        def crash(_: Settings) -> Finding:
            raise PermissionError(13, "Permission denied", "/dev/nvidia0")

        checks = [Check("slow", installation.check_database, 0.5), Check("bad", crash), CHECKS[0]]
        findings = run_checks(checks, dead)
        # Nor does what hangs keep the process from ending.
        code = f"""if True:
            from service.doctor.finding import Check, run_checks
            from service.doctor.installation import check_database
            from service.settings import Settings
            settings = Settings(database_url={dead.database_url!r})
            print(run_checks([Check("slow", check_database, 0.1)], settings)["slow"].status)
        """
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
        assert done.stdout == "fail\n"
    is_bad(findings["slow"], "fail", "no answer within 0.5 s")
    is_bad(findings["bad"], "fail", "PermissionError", "/dev/nvidia0")
    is_ok(findings["packages"], "Python 3.")


# ----------------------------------------------------------------------------------------------------- the machine


def test_doctor_finds_disks_that_are_read_only_or_full(settings: Settings, tmp_path: Path) -> None:
    command = ["unshare", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, "mount -t tmpfs t /mnt"], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    code = """if True:
        import json, sys
        from pathlib import Path
        from service.doctor import machine
        from service.doctor.finding import Check, run_checks
        from service.settings import Settings
        told = {}
        for folder in map(Path, sys.argv[1:]):
            if folder.name == "full":
                (folder / "filler").write_bytes(bytes(64 << 10))
            settings = Settings(data_dir=folder, disk_floor_bytes=1 << 20)
            checks = [Check("dir", machine.check_data_dir), Check("disk", machine.check_disk)]
            told[folder.name] = {name: vars(finding) for name, finding in run_checks(checks, settings).items()}
        print(json.dumps(told))
    """
    disks = {"full": "size=64k", "read-only": "ro", "small": "size=1m"}
    mounts = [f"mkdir {name} && mount -t tmpfs -o {options} tmpfs {name}" for name, options in disks.items()]
    folders = [str(tmp_path / name) for name in disks]
    script = f'cd {tmp_path} && {" && ".join(mounts)} && cd {ROOT} && exec "$0" -c "$@"'
    line = [*command, script, sys.executable, code, *folders]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    answers = json.loads(done.stdout).items()
    told = {kind: {name: Finding(**each) for name, each in found.items()} for kind, found in answers}
    is_bad(told["full"]["dir"], "fail", "No space left on device")
    is_bad(told["full"]["disk"], "fail", "uploads and jobs are refused", "add space")
    is_bad(told["read-only"]["dir"], "fail", "Read-only file system", str(tmp_path / "read-only"))
    is_bad(told["small"]["dir"], "warn", "on tmpfs, which a restart of the machine empties")
    assert told["small"]["disk"].status in ("warn", "fail")


def test_doctor_accepts_a_data_directory_that_can_be_made(settings: Settings) -> None:
    later = changed(settings, data_dir=settings.data_dir / "a" / "b")
    is_ok(machine.check_data_dir(later), "a/b can be made")
    assert not (settings.data_dir / "a").exists()
    assert not list(settings.data_dir.glob(".retort-doctor-*"))
    is_ok(machine.check_data_dir(settings), "can be written")
    is_ok(machine.check_disk(settings))
    is_bad(machine.check_disk(changed(settings, disk_floor_bytes=1 << 60)), "fail", "RETORT_DISK_FLOOR_BYTES")


def test_doctor_fails_sqlite_on_a_network_file_system_and_not_postgresql_beside_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = str(tmp_path).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"30 27 0:50 / {space} rw,relatime shared:1 - nfs4 server:/export rw\n"
        f"31 27 0:51 / {space}x rw,relatime - ext4 /dev/vdb rw\n"
    )
    monkeypatch.setattr(machine, "MOUNTS", mounts)
    is_bad(machine.check_data_dir(settings), "fail", "on nfs4, where SQLite loses data", "RETORT_DATABASE_URL")
    is_ok(machine.check_data_dir(changed(settings, database_url="postgresql://postgres@/retort")), "nfs4")
    told = mounts.read_text() + "32 30 0:52 / /mnt/with\\040space rw - xfs /dev/vdc rw\n"
    assert machine.file_system(Path("/mnt/with space/x"), told) == "xfs"
    assert machine.file_system(Path("/mnt/with"), told) == "ext4"
    assert machine.file_system(tmp_path / "data", told) == "nfs4"


def test_doctor_checks_cores_memory_files_and_temporary_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ok(machine.check_cores(settings))
    is_bad(machine.check_cores(changed(settings, run_cpus=5000.0)), "fail", "a run 5000", "RETORT_RUN_CPUS")
    is_bad(machine.check_cores(changed(settings, cpus=5000.0)), "warn", "the engine uses 5000", "RETORT_CPUS")
    is_ok(machine.check_memory(changed(settings, cpus=1.0)), "for 1 runs at once")
    is_bad(machine.check_memory(changed(settings, cpus=5000.0)), "warn", "for 5000 runs", "RETORT_RUN_CPUS")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        is_bad(machine.check_files(settings), "warn", "may open 1024 files", "ulimit -n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(tempfile, "tempdir", None)
    is_ok(machine.check_temp(settings))
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    is_bad(machine.check_temp(settings), "fail", "sockets would not fit", "TMPDIR")


# ----------------------------------------------------------------------------------------------------- the database


def test_doctor_checks_a_database_that_is_there_not_there_damaged_or_unreachable(
    settings: Settings, tmp_path: Path, postgres: PostgresServer
) -> None:
    is_ok(installation.check_database(settings), "retort.sqlite3, version 3.")
    is_ok(installation.check_database(changed(settings, database_url=postgres.url("retort"))), "version 1")
    fresh = changed(settings, data_dir=tmp_path / "fresh")
    is_ok(installation.check_database(fresh), "is not there yet")
    is_ok(installation.check_migrations(fresh), "none yet")
    assert not fresh.data_dir.exists()
    (tmp_path / "damaged").write_bytes(b"no database" * 1000)
    damaged = changed(settings, database_url=f"sqlite:///{tmp_path / 'damaged'}")
    is_bad(installation.check_database(damaged), "fail", "file is not a database")
    dead = changed(settings, database_url=f"postgresql://postgres:geheim@/retort?host={tmp_path}")
    for check in (installation.check_database, installation.check_migrations, installation.check_engine):
        finding = check(dead)
        is_bad(finding, "fail", "No such file or directory")
        assert "geheim" not in finding.found


def test_doctor_finds_a_migration_that_is_missing(settings: Settings) -> None:
    is_ok(installation.check_migrations(settings))
    with closing(Database(settings.database)) as database, database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    is_bad(installation.check_migrations(settings), "fail", "not at the newest", "`retort serve`")
    with closing(Database(settings.database)) as database, database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    is_bad(installation.check_migrations(settings), "fail", "9999", "a newer Retort has used it")


def test_doctor_finds_files_that_the_database_does_not_know_and_a_restore_that_was_killed(
    settings: Settings, tmp_path: Path
) -> None:
    is_ok(installation.check_files(settings), "knows the jobs")
    is_ok(installation.check_files(changed(settings, data_dir=tmp_path / "x")), "without a database")
    (settings.jobs_dir / "job_x" / "run_x" / "a1").mkdir(parents=True)
    is_bad(installation.check_files(settings), "warn", "jobs/job_x", "`retort restore`")
    (settings.data_dir / STAGING).mkdir()
    is_bad(installation.check_files(settings), "fail", "not finished", "`retort restore`")


def test_doctor_checks_an_engine_that_is_there_silent_or_was_never_there(settings: Settings, tmp_path: Path) -> None:
    is_bad(installation.check_engine(settings), "warn", "none leads")
    is_bad(installation.check_engine(changed(settings, data_dir=tmp_path / "x")), "warn", "none has ever led")
    with closing(Database(settings.database)) as database:
        for age_s, judge in (
            (3, is_ok),
            (3000, lambda found: is_bad(found, "fail", "3000 s ago", "its log says why")),
            (-3000, lambda found: is_bad(found, "fail", "s ahead of this machine's clock", "its log says why")),
        ):
            with database.write() as session:
                beat = database.now(session) - timedelta(seconds=age_s)
                session.execute(update(EngineRecord).values(holder="x", heartbeat_at=beat))
            judge(installation.check_engine(settings))
        with database.write() as session:
            report = GpuReport(promised=2, names=("H100",), failure="GPU 1 has fallen off the bus")
            now = {"heartbeat_at": database.now(session), "gpus": report.model_dump(mode="json")}
            session.execute(update(EngineRecord).values(**now))
        is_bad(
            installation.check_engine(settings), "fail", "2 GPUs are promised to runs and not all of them work: GPU 1"
        )


# ------------------------------------------------------------------------------------------ keys, port, datasets


def test_doctor_wants_keys_or_this_machine_alone(settings: Settings, tmp_path: Path) -> None:
    is_ok(installation.check_keys(settings), "only this machine may call")
    is_bad(installation.check_keys(changed(settings, host="0.0.0.0")), "fail", "'0.0.0.0'", "retort keys create")
    key = tmp_path / "key"
    key.write_text("short")
    with_file = changed(settings, host="0.0.0.0", api_key_file=key)
    is_bad(installation.check_keys(with_file), "fail", "5 characters")
    key.write_text("0123456789abcdef0123456789abcdef")
    key.chmod(0o644)
    is_bad(installation.check_keys(with_file), "warn", f"chmod o-r {key}")
    key.chmod(0o600)
    is_ok(installation.check_keys(with_file), "others, at 0.0.0.0")


def test_doctor_checks_a_port_that_is_free_ours_or_taken(settings: Settings, api: Api) -> None:
    is_ok(installation.check_port(settings), "is free")
    port = int(api.url.rpartition(":")[2])
    is_ok(installation.check_port(changed(settings, port=port)), "a service of ours answers")
    with socket.create_server(("127.0.0.1", settings.port)) as other:
        # Whoever it is hangs up at once.
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        is_bad(installation.check_port(settings), "fail", "Address already in use", "RETORT_PORT")


def test_doctor_looks_for_datasets_below_the_data_root(settings: Settings, tmp_path: Path) -> None:
    is_bad(installation.check_data_root(changed(settings, data_root=tmp_path / "none")), "warn", "RETORT_DATA_ROOT")
    root = settings.data_root
    (root / "broken.npz").write_bytes(b"PK")
    (root / "flowers" / "train").mkdir(parents=True)
    is_bad(installation.check_data_root(settings), "warn", "no dataset lies in", "built-in digits")
    for split in ("train", "test"):
        for name in ("daisy", "rose"):
            folder = root / "flowers" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    pictures, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    arrays = {"train_images": pictures, "train_labels": labels, "test_images": pictures, "test_labels": labels}
    np.savez(root / "small.npz", **arrays)
    is_ok(installation.check_data_root(settings), "folder flowers, npz small.npz")


# ------------------------------------------------------------------------------------------------ engine's packages


def test_doctor_checks_that_teachers_can_be_run_here(settings: Settings) -> None:
    """The very class that runs them, in a process of its own."""
    is_ok(packages.check_onnxruntime(settings), "ONNX Runtime runs teachers on ")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script of this name before all others on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def test_doctor_finds_a_gpu_that_the_driver_shows_and_torch_does_not_see(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], None]
) -> None:
    # conftest hides the machine's own.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program("nvidia-smi", "exit 9")
    is_ok(packages.check_gpu(settings), "no NVIDIA GPU")
    is_bad(packages.check_gpu(changed(settings, gpus=2)), "fail", "RETORT_GPUS is 2, the driver shows 0")
    program("nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB'")
    is_ok(packages.check_gpu(changed(settings, gpus=1)), "NVIDIA H100", "580.95.05")
    is_ok(packages.check_gpu(changed(settings, gpus=0)), "RETORT_GPUS is 0, so everything runs on the CPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    is_ok(packages.check_gpu(settings), "CUDA_VISIBLE_DEVICES leaves 0: none")
    is_bad(packages.check_gpu(changed(settings, gpus=1)), "fail", "RETORT_GPUS is 1, so the engine does not start")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    fake = tmp_path / "fake"
    fake.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(fake))
    (fake / "torch.py").write_text(
        "__version__ = '2.15.0'\nclass version: cuda = '13.2'\n"
        "class cuda:\n    device_count = staticmethod(lambda: 0)\n"
        "    def init(): raise RuntimeError('The NVIDIA driver is too old (found version 12080)')\nclass device: ...\n"
    )
    old = "the CPU alone: torch 2.15.0, built for CUDA 13.2, says: The NVIDIA driver is too old (found version 12080)"
    is_bad(packages.check_torch(settings), "fail", f"{old}; the driver shows NVIDIA H100", "update the driver")
    is_bad(packages.check_torch(changed(settings, gpus=2)), "fail", f"{old}; RETORT_GPUS is 2")
    is_ok(packages.check_torch(changed(settings, gpus=0)), "the CPU alone")
    (fake / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    is_bad(packages.check_torch(settings), "fail", "libcudart.so.13: cannot open", "-m workers.tools.probe torch")
    (fake / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    is_bad(packages.check_torch(settings), "fail", "signal 11")
    (fake / "torch.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(packages, "PROBE_S", 5.2)
    is_bad(packages.check_torch(settings), "fail", "longer than 0.2 s")


def test_doctor_finds_packages_that_do_not_fit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ok(packages.check_packages(settings), "Python 3.")
    older = tmp_path / "httpx2-0.1.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: httpx2\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    is_bad(packages.check_packages(settings), "fail", "httpx2 0.1 (>=2.16)", "constraints.txt")
