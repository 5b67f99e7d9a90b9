"""How a process died, told from outside: real processes that end in each way, and kernel files as they would be."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from workers.cluster import deaths
from workers.cluster import memory as memory_module
from workers.cluster.deaths import Death, ProcessId, Watch
from workers.cluster.memory import Memory, memory, oom_kills

UNEXPECTED = """The actor died unexpectedly before finishing this task.
\tclass_name: TrainingActor
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called."""
EXITED = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits \
unexpectedly. Worker exits with an exit code 4."""
TERMINATED = f"{EXITED[:-2]}1. The process receives a SIGTERM."
NODE_DIED = """The actor died unexpectedly before finishing this task.
The actor is dead because its node has died. Node Id: 12"""
MONITOR = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1) was \
22.60GB used / 23.54GB limit (0.960069)
OOM kill reason: Memory usage exceeded threshold
Selected to kill: (Actor(d2): job ID=01, lease ID=00, task name=A.__init__, actual memory used={own}GB, worker ID=dd)"""
GiB = 2**30


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a kernel: cgroup version 2 without a limit, and a machine of which an eighth is used."""
    folder = tmp_path / "kernel"
    (folder / "self").mkdir(parents=True)
    (folder / "self/cgroup").write_text("0::/\n")
    monkeypatch.setattr(memory_module, "_PROC", folder)
    monkeypatch.setattr(memory_module, "_CGROUP", folder)
    use(folder, 1)
    count(folder, 3)
    return folder


def use(folder: Path, used: int, total: int = 8) -> None:
    """Gibibytes of the machine's memory."""
    lines = f"MemTotal: {total << 20} kB\nMemFree: 0 kB\nMemAvailable: {(total - used) << 20} kB\n"
    (folder / "meminfo").write_text(lines)


def count(folder: Path, kills: int) -> None:
    (folder / "memory.events").write_text(f"low 0\noom 1\noom_kill {kills}\n")


def died(shell: str, said: str = UNEXPECTED, stderr: str = "") -> Death:
    """The death of a shell that did this, watched from the beginning."""
    with subprocess.Popen(["sh", "-c", f"read line; {shell}"], stdin=subprocess.PIPE) as process:
        watch = Watch(ProcessId(process.pid, stderr))
        process.communicate(b"\n")
    return watch.death(RuntimeError(said))


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not tell the exit status of others' children."""

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(deaths.fcntl, "ioctl", refuse)


def tells_exit_status() -> bool:
    with subprocess.Popen(["true"]) as process:
        watch = Watch(ProcessId(process.pid, ""))
    return watch._status() is not None


@pytest.mark.parametrize(
    ("shell", "text"),
    [
        ("kill -9 $$", "the process was ended by signal 9 (SIGKILL)"),
        ("kill -11 $$", "the process was ended by signal 11 (SIGSEGV)"),
        ("exit 3", "the process ended by itself with exit code 3"),
    ],
)
def test_death_has_the_exit_status_where_the_kernel_gives_it(shell: str, text: str) -> None:
    if not tells_exit_status():
        pytest.skip("this kernel does not tell of other processes' children (Linux 6.15)")
    assert died(shell) == Death(text)


@pytest.mark.usefixtures("old_kernel")
def test_death_is_read_from_the_report_of_a_crash_and_from_ray_without_the_kernels_status(tmp_path: Path) -> None:
    report = tmp_path / "worker.err"
    report.write_text(":job_id:01\n*** SIGSEGV received at time=1795976806 on cpu 1 ***\nPC: @ 0x7f kill\n")
    assert died("true", stderr=str(report)).text == "the process was ended by signal 11 (SIGSEGV)"
    report.write_text("nothing to see\n")
    unsaid = "the process ended without a word, most likely by signal 9 (SIGKILL)"
    assert died("true", stderr=str(report)).text == unsaid
    assert died("true", stderr=str(tmp_path / "gone")).text == unsaid
    assert died("true", EXITED).text == "the process ended by itself with exit code 4"
    assert died("true", TERMINATED).text == "the process was ended by signal 15 (SIGTERM)"


def test_death_of_an_unwatched_process_is_read_from_ray_alone() -> None:
    assert "most likely by signal 9" in Watch().death(RuntimeError(UNEXPECTED)).text
    killed = "The actor died.\nThe actor is dead because it was killed by `ray.kill`."
    assert Watch().death(RuntimeError(killed)) == Death("it was killed by `ray.kill`.")
    assert Watch().death(TimeoutError("no answer in 600 s")) == Death("no answer in 600 s")


def test_death_with_ray_is_no_fault_of_the_work() -> None:
    death = died("kill -9 $$", NODE_DIED)
    assert death.is_node_fault
    assert death.text == "Ray itself ended, and the process with it (its node has died. Node Id: 12)"


@pytest.mark.parametrize(
    ("used", "kills", "is_node_fault", "said"),
    [
        (1, 0, False, "the process was ended by signal 9 (SIGKILL)"),
        (
            1,
            1,
            False,
            "OOM killer ended 1 process of this cgroup in that time, and 1.0 of 8.0 GiB of memory are in use without "
            "it, so it had most of it itself: use a smaller batch_size, or more memory",
        ),
        (5, 2, True, "OOM killer ended 2 processes of this cgroup in that time; others use 5.0 of 8.0 GiB of memory"),
        # Where nobody counts: systemd-oomd, say.
        (7, 0, False, "(SIGKILL)"),
        (8, 0, True, "(SIGKILL); others use 8.0 of 8.0 GiB of memory"),
    ],
)
def test_death_by_a_kill_is_the_nodes_fault_where_others_have_the_memory(
    kernel: Path, used: int, kills: int, is_node_fault: bool, said: str
) -> None:
    watch = Watch()
    count(kernel, 3 + kills)
    use(kernel, used)
    death = deaths._judge("the process was ended by signal 9 (SIGKILL)", signal.SIGKILL, oom_kills() - 3, memory())
    assert death.is_node_fault is is_node_fault
    assert death.text.endswith(said)
    by_watch = watch.death(RuntimeError(UNEXPECTED))
    assert by_watch.is_node_fault is is_node_fault


def test_death_ignores_kills_from_before_the_last_answer(kernel: Path) -> None:
    use(kernel, 5)
    watch = Watch()
    count(kernel, 4)
    watch.alive(oom_kills())
    assert not watch.death(RuntimeError(UNEXPECTED)).is_node_fault
    # It was asked before the kill; its answer is read after it.
    count(kernel, 5)
    watch.alive(4)
    assert watch.death(RuntimeError(UNEXPECTED)).is_node_fault


def test_death_by_a_crash_on_a_full_machine_is_a_crash(kernel: Path, tmp_path: Path) -> None:
    use(kernel, 8)
    count(kernel, 9)
    report = tmp_path / "worker.err"
    report.write_text("*** SIGSEGV received at time=1 on cpu 1 ***\n")
    assert not Watch(ProcessId(2**22 + 1, str(report))).death(RuntimeError(UNEXPECTED)).is_node_fault


@pytest.mark.parametrize(("own", "is_node_fault"), [("0.25", True), ("20.00", False)])
def test_death_by_rays_memory_monitor_is_the_nodes_fault_unless_the_process_had_the_memory(
    own: str, is_node_fault: bool
) -> None:
    death = Watch().death(RuntimeError(MONITOR.format(own=own)))
    assert death.is_node_fault is is_node_fault
    assert "Ray's memory monitor ended the process: 22.60 of 23.54 GB were in use" in death.text
    assert ("use a smaller batch_size" in death.text) is not is_node_fault


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_cgroup_where_it_is_the_fuller_one(kernel: Path, version: int) -> None:
    names = [("memory.max", "memory.current", "inactive_file", "0::/own\n")]
    names += [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "7:cpu:/\n4:memory:/own\n")]
    limit, used, cache, line = names[2 - version]
    folder = kernel / "own" if version == 2 else kernel / "memory/own"
    folder.mkdir(parents=True)
    (kernel / "self/cgroup").write_text(line)
    (folder / limit).write_text(f"{4 * GiB}\n")
    (folder / used).write_text(f"{3 * GiB}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cache} {GiB}\n")
    assert memory() == Memory(2 * GiB, 4 * GiB)
    use(kernel, 7)
    assert memory() == Memory(7 * GiB, 8 * GiB)
    # Without a limit, version 1 says a very large number and version 2 a word.
    (folder / limit).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert memory() == Memory(7 * GiB, 8 * GiB)


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"memory.events": "oom_kill 2\n", "vmstat": "oom_kill 9\n"}, 2),
        ({"memory/memory.oom_control": "under_oom 0\noom_kill 5\n", "vmstat": "oom_kill 9\n"}, 5),
        ({"vmstat": "nr_free 1\noom_kill 9\n"}, 9),
        ({}, 0),
    ],
)
def test_oom_kills_are_those_of_the_cgroup_before_those_of_the_machine(
    kernel: Path, files: dict[str, str], kills: int
) -> None:
    (kernel / "memory.events").unlink()
    (kernel / "memory").mkdir()
    for name, text in files.items():
        (kernel / name).write_text(text)
    assert oom_kills() == kills


def test_watch_leaves_no_descriptor_behind() -> None:
    def descriptors() -> Sequence[str]:
        return os.listdir("/proc/self/fd")

    before = len(descriptors())
    for _ in range(3):
        Watch(ProcessId(os.getpid(), ""))
    assert len(descriptors()) == before
