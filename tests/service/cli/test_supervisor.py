"""``retort serve`` and its supervisor: both processes start, both end, and nothing stays behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from service.cli.processes.background_service import BackgroundService, ServiceEnded, answers_ready
from service.cli.processes.supervisor import free_port
from service.client.client import Client
from tests.support.process_table import api_process, processes_with
from tests.support.service_helpers import open_to_others

ROOT = Path(__file__).resolve().parents[3]

# The two children of a toy service: each says that it is up, and then does what it is told.
CHILD = """
import pathlib, signal, subprocess, sys, time
from service.cli.processes.supervisor import end_with_stdin
kind, up = sys.argv[1], pathlib.Path(sys.argv[2])
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if kind == "littering":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if kind != "unattached":
    end_with_stdin()
if kind == "failing":
    sys.exit(3)
up.touch()
time.sleep(600)
"""
SUPERVISOR = """
import os, pathlib, sys
from service.cli.processes.supervisor import supervise
folder, kinds, grace_s = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3])
ups = [folder / f"{kind}.up" for kind in kinds]
sys.exit(supervise(
    {f"{kind} child": [sys.executable, folder / "child.py", kind, str(up)] for kind, up in zip(kinds, ups)},
    environment=os.environ,
    is_ready=lambda: all(up.exists() for up in ups),
    has_begun=lambda: all(up.exists() for up in ups),
    say=lambda text: print(text, flush=True),
    ready_text="ready",
    optional=[f"{kind} child" for kind in sys.argv[4:]],
    grace_s=grace_s,
))
"""


class Toy:
    """A supervisor with two toy children; all of them write to the same pipe."""

    def __init__(self, folder: Path, kinds: str, grace_s: float = 60.0, optional: Sequence[str] = ()) -> None:
        (folder / "child.py").write_text(CHILD)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(folder), kinds, str(grace_s), *optional],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> "Toy":
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing to do but after a failure: the children end with it.
        self.process.kill()
        with self.process:
            pass

    def rest(self) -> str:
        """What it still says. The pipe ends when the last process that holds it has: supervisor, child, grandchild."""
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        self.process.wait()
        return text


def kill_second(toy: Toy) -> None:
    children = Path(f"/proc/{toy.process.pid}/task/{toy.process.pid}/children").read_text().split()
    (victim,) = (int(pid) for pid in children if b"\0second\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_supervise_ends_every_process_at_a_signal_which_is_no_failure(tmp_path: Path, number: signal.Signals) -> None:
    with Toy(tmp_path, "first,second") as toy:
        toy.wait_ready()
        toy.process.send_signal(number)
        assert toy.rest() == "stopping\n"
        assert toy.process.returncode == 0


def test_supervise_ignores_a_signal_that_was_ignored_at_the_start(tmp_path: Path) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        toy = Toy(tmp_path, "first,second")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with toy:
        toy.wait_ready()
        for number in before:
            toy.process.send_signal(number)
        # One that ended it would be heard before this.
        kill_second(toy)
        assert toy.process.stdout is not None
        assert toy.process.stdout.readline() == "second child ended by itself (signal SIGKILL), starting it again\n"
        toy.process.terminate()
        assert toy.rest() == "stopping\n"


def test_supervise_starts_a_child_again_that_is_killed(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,second") as toy:
        toy.wait_ready()
        for number in (1, 2):
            kill_second(toy)
            assert toy.process.stdout is not None
            assert toy.process.stdout.readline() == "second child ended by itself (signal SIGKILL), starting it again\n"
            up = tmp_path / "second.up"
            up.unlink()
            while not up.exists():
                assert toy.process.poll() is None, number
                time.sleep(0.02)
        toy.process.terminate()
        assert toy.rest() == "stopping\n"
        assert toy.process.returncode == 0


def test_supervise_ends_both_where_a_child_never_comes_up(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,failing") as toy:
        last = toy.rest().splitlines()[-1]
        assert last == "failing child ended by itself (exit status 3), so first child was ended, too"
        assert toy.process.returncode == 1


def test_supervise_kills_a_child_that_ignores_signals_after_the_grace(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,deaf", grace_s=0.5) as toy:
        toy.wait_ready()
        toy.process.terminate()
        assert toy.rest() == "stopping\n"
        assert toy.process.returncode == 0


def test_supervise_ends_the_grace_at_a_second_signal(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,deaf", grace_s=600.0) as toy:
        toy.wait_ready()
        toy.process.terminate()
        assert toy.process.stdout is not None
        assert toy.process.stdout.readline() == "stopping\n"
        toy.process.terminate()
        assert toy.rest() == ""
        assert toy.process.returncode == 0


def test_supervise_ends_what_a_child_leaves_in_its_group(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,littering") as toy:
        toy.wait_ready()
        toy.process.terminate()
        assert toy.rest() == "stopping\n"


def test_supervise_that_is_killed_has_children_that_end_by_themselves(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,second") as toy:
        toy.wait_ready()
        toy.process.kill()
        assert toy.rest() == ""


# ------------------------------------------------------------------------------------ the real thing


def none_left(text: str) -> bool:
    """Whether these processes end soon. Ray's agents notice that their raylet is gone, and end by themselves."""
    deadline = time.monotonic() + 60.0
    while processes_with(text):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundService]:
    """One for the two tests below, of which the second ends it."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("counts processes by /proc")
    folder = tmp_path_factory.mktemp("service")
    with BackgroundService(folder / "data", folder) as running:
        running.wait_ready()
        yield running


def heaps(pid: int) -> int:
    """How many heaps glibc has made in a process beside the first: 64 MiB each, at such an address, in use in part."""
    size = 64 << 20
    found = re.findall(r"^(\w+)-(\w+) (\S+)", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    spans = [(int(start, 16), int(end, 16), rights[:3]) for start, end, rights in found]
    return sum(
        start % size == 0 and middle == rest and end - start == size and (used, spare) == ("rw-", "---")
        for (start, middle, used), (rest, end, spare) in pairwise(spans)
    )


def test_api_threads_share_one_heap(service: BackgroundService) -> None:
    """Or its memory would grow with every thread that has ever been at work beside others."""
    api = api_process(service.pid)
    with Client(service.url) as client, ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda _: list(client.jobs()), range(200))) == [[]] * 200
    assert len(os.listdir(f"/proc/{api}/task")) > 2
    assert heaps(api) == 0


def test_serve_starts_both_and_a_signal_leaves_no_process(service: BackgroundService) -> None:
    data_dir = service.log_path.parent
    marker = str(data_dir)
    lines = processes_with(marker).values()
    assert any("service.cli api" in line for line in lines)
    assert any("service.cli engine" in line for line in lines)
    assert '"there is no API key, so only this machine may call"' in service.log_path.read_text()
    with Client(service.url) as client:
        assert client.ready()["ready"]
    assert open_to_others(data_dir) == []
    os.kill(service.pid, signal.SIGTERM)
    service.wait()
    assert none_left(marker), processes_with(marker)


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for it, for as long as the process lives."""
    while not holds():
        assert process.poll() is None
        time.sleep(0.1)


def test_serve_outlives_its_terminal_and_the_readers_of_its_streams(tmp_path: Path) -> None:
    """Started as ``nohup retort serve 2>/dev/full | head -1 &`` in a script starts it."""
    port = free_port()
    options = ["--port", str(port), "--data-dir", str(tmp_path / "data"), "--data-root", str(tmp_path)]
    shell = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh"]
    with (
        subprocess.Popen(
            [*shell, sys.executable, "-m", "service.cli", "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        ) as running,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        try:
            assert running.stdout is not None
            assert running.stdout.readline()
            running.stdout.close()
            until(lambda: answers_ready(client), running)
            everyone = [
                running.pid,
                *(pid for pid, line in processes_with(str(tmp_path)).items() if "service.cli" in line),
            ]
            for number in (signal.SIGHUP, signal.SIGINT):
                for pid in everyone:
                    os.kill(pid, number)
            # This has the supervisor say something, and the others as they come and go.
            before = api_process(running.pid)
            os.kill(before, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{before}").exists() and answers_ready(client), running)
            assert all(Path(f"/proc/{pid}").exists() for pid in everyone if pid != before)
        finally:
            running.terminate()
        assert running.wait() == 0
    assert none_left(str(tmp_path / "data"))


def test_serve_that_fails_to_start_says_why(tmp_path: Path) -> None:
    database = tmp_path / "data" / "retort.sqlite3"
    database.mkdir(parents=True)
    with (
        BackgroundService(tmp_path / "data", tmp_path) as running,
        pytest.raises(ServiceEnded, match=r"database.*service\.log"),
    ):
        running.wait_ready()


def test_serve_refuses_a_taken_port_before_anything_starts(tmp_path: Path) -> None:
    import socket

    port = free_port()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert not (tmp_path / "data").exists()


def test_free_port_is_none_that_outgoing_connections_get() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port() for _ in range(20)}
    assert not any(first <= port <= last for port in ports)
    assert len(ports) > 15
