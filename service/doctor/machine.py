"""Checks of the machine: disk, file systems, memory, cores, limits."""

import os
import resource
import shutil
import tempfile
from pathlib import Path

from service.db.database import Database
from service.doctor.finding import Finding
from service.operations.disk import Freeable
from service.settings import GiB, MiB, Settings
from service.units import size
from store.memory_limit import memory_bytes
from workers.cluster.head_folder import machine_folder

MOUNTS = Path("/proc/self/mountinfo")
# SQLite's write-ahead log is shared memory, and locks on these are not what they are elsewhere.
REMOTE = ("afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gpfs", "lustre", "nfs", "smb")
VOLATILE = ("ramfs", "tmpfs")
FILES_MIN = 4096
SHARED_MEMORY_MIN_BYTES = 200 * MiB
RUN_MEMORY_BYTES = GiB
TEMP_MIN_BYTES = 512 * MiB
# The kernel's limit of a socket's path, less what Ray appends to its folder.
RAY_FOLDER_CHARS_MAX = 107 - 70


def check_data_dir(settings: Settings) -> Finding:
    """Check that the data directory can be written and is on a fit file system."""
    folder = settings.data_dir.resolve()
    existing = _nearest(folder)
    _write_probe(existing)
    kind = file_system(existing, MOUNTS.read_text())
    found = f"{folder} can be {'written' if existing == folder else 'made'}, on {kind}"
    if kind.startswith(REMOTE) and Database(settings.database).is_sqlite:
        advice = "put RETORT_DATA_DIR on a local disk, or set RETORT_DATABASE_URL to a PostgreSQL database"
        return Finding("fail", f"{found}, where SQLite loses data", advice)
    if kind in VOLATILE:
        return Finding("warn", f"{found}, which a restart of the machine empties", "put RETORT_DATA_DIR on a disk")
    return Finding("ok", found)


def check_disk(settings: Settings) -> Finding:
    """Check that more of the disk is free than the reserve."""
    existing = _nearest(settings.data_dir.resolve())
    free, floor = shutil.disk_usage(existing).free, settings.disk_floor_bytes
    found = f"{size(free)} are free for {settings.data_dir.resolve()}, {size(floor)} stay in reserve"
    if free < 2 * floor:
        advice = f"add space, set RETORT_DISK_FLOOR_BYTES, or free some: {_freeable(settings)}"
        if free < floor:
            return Finding("fail", f"{found}: uploads and jobs are refused, and the engine begins nothing new", advice)
        return Finding("warn", found, advice)
    inodes = os.statvfs(existing)
    if inodes.f_files and inodes.f_favail < 10_000:
        return Finding("warn", f"{found}, but only {inodes.f_favail} more files can be made", "remove files")
    return Finding("ok", found)


def _freeable(settings: Settings) -> str:
    database = Database(settings.database)
    try:
        return Freeable(settings, database).sentence() if database.exists() else "there is nothing of Retort's yet"
    finally:
        database.close()


def check_temp(settings: Settings) -> Finding:
    """The temporary directory: uploads, Ray's sockets."""
    folder = Path(tempfile.gettempdir())
    _write_probe(folder)
    free = shutil.disk_usage(folder).free
    found = f"{folder} can be written, {size(free)} are free"
    ray_folder = machine_folder(settings.data_dir) / "ray"
    if len(str(ray_folder)) > RAY_FOLDER_CHARS_MAX:
        found += f"; its name is so long that Ray's sockets would not fit ({ray_folder})"
        return Finding("fail", found, "set TMPDIR to a shorter path, such as /tmp, for the engine")
    if free < TEMP_MIN_BYTES:
        return Finding("warn", found, f"free {size(TEMP_MIN_BYTES)} there, or set TMPDIR")
    return Finding("ok", found)


def check_shared_memory(settings: Settings) -> Finding:
    """Ray's object store lies in /dev/shm."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("warn", "there is no /dev/shm: Ray's object store will be on the disk", "mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} are free in /dev/shm"
    if free < SHARED_MEMORY_MIN_BYTES:
        advice = "give the engine's container `--shm-size=1g`, or remount /dev/shm with more"
        return Finding("warn", f"{found}, Ray would put its object store on the disk", advice)
    return Finding("ok", found)


def check_cores(settings: Settings) -> Finding:
    """Check that a run can get the cores that it asks for."""
    cores = _cores()
    engine = int(settings.cpus or cores)
    of_a_run = "what is chosen at its start" if settings.run_cpus is None else f"{settings.run_cpus:g}"
    found = f"{cores:g} cores, the engine uses {engine}, a run {of_a_run}"
    if settings.run_cpus is not None and settings.run_cpus > engine:
        advice = f"set RETORT_RUN_CPUS to {engine} or less, or RETORT_CPUS to more"
        return Finding("fail", f"{found}: the engine does not start, for no run could", advice)
    if engine > cores:
        return Finding("warn", f"{found}: runs will share cores", f"set RETORT_CPUS to {cores:g} or less")
    return Finding("ok", found)


def check_memory(settings: Settings) -> Finding:
    """Check that there is memory for as many runs as there are cores for."""
    total = memory_bytes()
    # At most: on GPUs fewer may fit.
    runs = max(1, int((settings.cpus or _cores()) / (settings.run_cpus or 1.0)))
    found = f"{size(total)} of memory for {runs} runs at once"
    if total < runs * RUN_MEMORY_BYTES:
        advice = f"a run takes about {size(RUN_MEMORY_BYTES)}: raise RETORT_RUN_CPUS or lower RETORT_CPUS"
        return Finding("warn", found, advice)
    return Finding("ok", found)


def check_files(settings: Settings) -> Finding:
    """Check how many files, and so connections, a process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        advice = "start the service after `ulimit -n 65536`, or set LimitNOFILE=65536 in its systemd unit"
        return Finding("warn", f"a process may open {soft} files; streams and Ray want {FILES_MIN}", advice)
    return Finding("ok", f"a process may open {'any number of' if soft == resource.RLIM_INFINITY else soft} files")


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that a path lies on.

    Args:
        mounts: what ``MOUNTS`` says.
    """
    best, kind = -1, "an unknown file system"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].encode().decode("unicode_escape"))
        # Of several on one point the last one is seen.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return kind


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _write_probe(folder: Path) -> None:
    """Raises OSError if no file can be written there."""
    with tempfile.NamedTemporaryFile(prefix=".retort-doctor-", dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())


def _cores() -> float:
    """Cores that this process may use: by affinity, and by its control group, of which psutil knows nothing."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = _read_first("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def _read_first(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
