"""What a confined process can no longer do, and what becomes of one that breaks its bounds."""

import errno
import fcntl
import json
import logging
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from pydantic import JsonValue

from workers.errors import SessionLost, WorkerError
from workers.onnx.sandboxing import sandbox, seccomp, system_calls
from workers.onnx.sandboxing.sandbox import SandboxOutcome, call
from workers.onnx.sandboxing.sandbox_child import ROOT

PROBES = "tests.support.sandbox_probes"
MEMORY_BYTES = 1 << 30


def probe(function: str, timeout_s: float = 20, **arguments: JsonValue) -> SandboxOutcome:
    given = [Path(str(arguments["given"]))] if "given" in arguments else []
    return call(
        f"{PROBES}:{function}",
        arguments,
        readable=[ROOT / "tests", *given],
        memory_bytes=MEMORY_BYTES,
        timeout_s=timeout_s,
    )


def test_sandbox_lets_nothing_out(tmp_path: Path) -> None:
    """Root included: these tests may run as root."""
    given, other = tmp_path / "given", tmp_path / "other"
    given.write_bytes(b"given")
    other.write_bytes(b"other")
    value, breach = probe("escapes", given=str(given), other=str(other), folder=str(tmp_path))
    assert breach is None
    assert isinstance(value, dict)
    allowed = {name for name, outcome in value.items() if outcome == "done"}
    assert allowed == {"read the given file", "start a thread", "import a module", "signal itself"}
    assert value.pop("set up io_uring") == "OSError"  # ENOSYS, as on an older kernel
    assert {outcome for name, outcome in value.items() if name not in allowed} == {"PermissionError"}
    assert (given.read_bytes(), other.read_bytes(), sorted(os.listdir(tmp_path))) == (
        b"given",
        b"other",
        ["given", "other"],
    )


def test_sandbox_with_gpus_is_confined_but_for_what_their_driver_needs(tmp_path: Path) -> None:
    """It may choose cores; but for the devices of the driver, no file may be written."""
    given, other = tmp_path / "given", tmp_path / "other"
    given.write_bytes(b"given")
    other.write_bytes(b"other")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from tests.support import sandbox_probes\n"
        "from workers.onnx.sandboxing import confinement\n"
        "readable = [Path(name) for name in (*sys.path, sys.prefix, sys.base_prefix, sys.argv[1]) if name]\n"
        "missing = confinement.confine(confinement.Bounds(None, None, gpu=True), readable)\n"
        "print(json.dumps([missing, sandbox_probes.escapes(*sys.argv[1:])]))"
    )
    command: list[str | Path] = [sys.executable, "-c", code, given, other, tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True)
    missing, outcomes = json.loads(done.stdout)
    assert missing == []
    allowed = {name for name, outcome in outcomes.items() if outcome == "done"}
    assert allowed == {"read the given file", "start a thread", "import a module", "signal itself", "choose cores"}
    assert (given.read_bytes(), sorted(os.listdir(tmp_path))) == (b"given", ["given", "other"])


def test_sandbox_without_landlock_reads_files_and_refuses_all_else(tmp_path: Path) -> None:
    """As on a kernel older than 5.13; one older than 6.12 has no scope for signals either."""
    given, other = tmp_path / "given", tmp_path / "other"
    given.write_bytes(b"given")
    other.write_bytes(b"other")
    code = (
        "import json, sys\n"
        "from tests.support import sandbox_probes\n"
        "from workers.onnx.sandboxing import confinement\n"
        "def absent(*_): raise OSError(38, 'absent')\n"
        "confinement.restrict_files = absent\n"
        f"missing = confinement.confine(confinement.Bounds({MEMORY_BYTES}, 20), [])\n"
        "print(json.dumps([missing, sandbox_probes.escapes(*sys.argv[1:])]))"
    )
    command: list[str | Path] = [sys.executable, "-c", code, given, other, tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True)
    missing, outcomes = json.loads(done.stdout)
    assert missing == ["file-system rules (absent)"]
    reading = {"read the given file", "read another file", "list a folder", "import a module"}
    # Whether that may be read is a matter of the two processes' users and capabilities.
    del outcomes["read its parent's environment"]
    allowed = {name for name, outcome in outcomes.items() if outcome == "done"}
    assert allowed == {*reading, "start a thread", "signal itself"}
    assert (given.read_bytes(), other.read_bytes(), sorted(os.listdir(tmp_path))) == (
        b"given",
        b"other",
        ["given", "other"],
    )


def test_sandbox_child_knows_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_SECRET", "x")
    value, _ = probe("surroundings", timeout_s=11)
    assert isinstance(value, dict)
    # The last one is set in the child, by the package itself.
    known = {"LC_CTYPE", "LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"}
    assert set(value["environment"]) <= known
    assert value["limits"] == {"AS": MEMORY_BYTES, "CPU": 11, "FSIZE": 0, "NOFILE": 64, "CORE": 0}
    assert value["leads its session"] is True
    # Root's may be left with that of reading any file, where Landlock lets it.
    assert set(value["capabilities"]) <= {0, 1 << 2}


@pytest.mark.parametrize(
    ("function", "arguments", "timeout_s", "breach"),
    [
        ("sleep", {}, 1, "takes longer than the 1 s allowed"),
        ("take", {"size_bytes": 2 << 30}, 20, f"needs more memory than the {MEMORY_BYTES} bytes allowed"),
        ("crash", {}, 20, "crashes its reader (SIGSEGV): it is damaged or hostile"),
        ("chatter", {"size_bytes": 2 << 20}, 20, "has an answer of more than 1048576 bytes: it is damaged or hostile"),
    ],
)
def test_sandbox_names_a_breach(function: str, arguments: dict[str, JsonValue], timeout_s: float, breach: str) -> None:
    assert probe(function, timeout_s, **arguments) == SandboxOutcome(None, breach)


def test_sandbox_bounds_processor_time_too() -> None:
    """A second of it, where the clock would allow more: a child in a debugger, say."""
    confine = "from workers.onnx.sandboxing.confinement import *; confine(Bounds(1 << 30, 1), [])\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", confine], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGXCPU
    assert "1 s of processor time" in str(sandbox._outcome(b"", done.returncode, 1, 0).breach)


def test_sandbox_answer_is_the_functions_and_not_what_libraries_print() -> None:
    assert probe("print_and_answer") == SandboxOutcome(7, None)


def test_sandbox_keeps_the_last_lines_of_standard_error_when_the_child_dies(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the log and in the message, with nothing in them that a terminal obeys; none of it on this process's own."""
    said = "not shown | not shown | terminate called | what():\\x1b]0;owned\\x07 bad\ufffd"
    outcome = probe("complain_and_abort")
    assert outcome.breach == f"crashes its reader (SIGABRT): it is damaged or hostile. It says last: {said}"
    assert [record.message for record in caplog.records] == [
        f"a confined process ({PROBES}:complain_and_abort) gave no answer; its standard error ends: {said}"
    ]
    assert capfd.readouterr().err == ""


def test_sandbox_cuts_a_long_standard_error_and_does_not_block() -> None:
    assert probe("complain_and_answer", size_bytes=1 << 20) == SandboxOutcome(7, None)
    assert sandbox.last_lines(b"x" * 10_000) == "x" * 600


def test_sandbox_raises_a_mistake_of_ours_as_no_breach() -> None:
    with pytest.raises(WorkerError, match="ValueError: a mistake of ours"):
        probe("fail")
    with pytest.raises(WorkerError, match="has no attribute 'nothing'"):
        probe("nothing")


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b"noise",
        b'{"missing": []',
        b'{"missing": ["a", "b", "c", "d", "e", "f", "g", "h", "i"], "value": 1}',
        b'{"missing": [], "more": 1}',
        b"[" * 100_000,
    ],
)
def test_sandbox_answer_that_the_child_would_not_give_is_a_breach(answer: bytes) -> None:
    """Whoever has taken it over may write anything, and is no fault of ours."""
    assert "cannot be read" in str(sandbox._outcome(answer, 0, 1, 1).breach)


def test_sandbox_knows_every_signal() -> None:
    """Real-time signals have no names."""
    for number in signal.valid_signals() - {signal.SIGKILL}:
        assert sandbox._outcome(b"", -number, 1, 1).breach is not None


def test_sandbox_child_that_is_ended_from_outside_is_no_breach() -> None:
    """The kernel ends such a process first where the machine has no memory left: that is not the file's fault."""
    with pytest.raises(SessionLost, match=r"ended from outside \(SIGKILL\), as the kernel does where .* no memory"):
        probe("end_by_kill")


def test_sandbox_child_that_cannot_start_is_no_breach() -> None:
    with pytest.raises(WorkerError, match=r"exit status 1\)\. It says last: No module named workers"):
        sandbox._outcome(b"", 1, 1, 1, said="No module named workers")


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_sandbox_child_dies_with_its_parent() -> None:
    """Killed, the parent cannot clean up."""
    code = "from tests.workers.onnx.test_sandbox import probe; probe('sleep', 600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        deadline_s = time.monotonic() + 30
        while not (found := children(parent.pid)) and time.monotonic() < deadline_s:
            os.sched_yield()
        # The child is not confined at once; it dies all the same.
        gone = os.pidfd_open(found[0])
        parent.kill()
    assert wait_for_end(gone)


def wait_for_end(descriptor: int) -> bool:
    """Whether the process of a pidfd ends within 10 s."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        return bool(poll.poll(10_000))
    finally:
        os.close(descriptor)


def test_sandbox_warns_once_of_what_a_system_lacks_and_the_rest_holds(caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import platform; platform.machine = lambda: 'vax'\n"
        "from workers.onnx.sandboxing.confinement import *\n"
        "print(*confine(Bounds(1 << 30, 10), []))\n"
        "try: open('/etc/passwd')\nexcept PermissionError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True, capture_output=True)
    assert done.stdout.splitlines() == ["a filter of system calls (its system calls are not known on vax)", "refused"]
    sandbox._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sandbox._outcome(b'{"value": 1, "missing": ["a filter of system calls (vax)"]}', 0, 1, 1)
    assert [record.message for record in caplog.records] == [
        "uploads are read without a filter of system calls (vax): the other bounds hold"
    ]


# ------------------------------------------------------------------------------------------- the filter, interpreted


def verdict(program: list[bytes], audit: int, number: int, *arguments: int) -> int:
    """What the kernel would answer: a classic BPF machine for the four instructions that the filter uses."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at, word = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack("HBBI", program[at])
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            word = struct.unpack_from("=I", data, operand)[0]
        else:
            holds = {0x15: word == operand, 0x35: word >= operand, 0x45: bool(word & operand)}[code]
            at += if_true if holds else if_false


ALLOWED, EPERM, ENOSYS, KILLED = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000


@pytest.mark.parametrize(
    ("name", "read", "socket", "clone", "openat", "kill", "prlimit", "fcntl_", "ioctl"),
    [("x86_64", 0, 41, 56, 257, 62, 302, 72, 16), ("aarch64", 63, 198, 220, 56, 129, 261, 25, 29)],
)
def test_seccomp_filter_of_each_machine_decides_as_it_should(
    name: str, read: int, socket: int, clone: int, openat: int, kill: int, prlimit: int, fcntl_: int, ioctl: int
) -> None:
    machine = system_calls.MACHINES[name]
    program = seccomp._program(machine, process=42)

    def answer(number: int, *arguments: int) -> int:
        return verdict(program, machine.audit, number, *arguments)

    assert (answer(read), answer(socket), answer(425), answer(1 << 30 | read)) == (ALLOWED, EPERM, ENOSYS, ENOSYS)
    assert verdict(program, 0x40000003, read) == KILLED  # the 32-bit calls of x86
    assert (answer(clone, 0x3D0F00), answer(clone, 0x11)) == (ALLOWED, EPERM)  # a thread, a fork
    assert (answer(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC), answer(openat, 0, 0, os.O_RDWR)) == (ALLOWED, EPERM)
    assert answer(openat, 0, 0, os.O_CREAT) == EPERM
    assert (answer(kill, 42), answer(kill, 43)) == (ALLOWED, EPERM)
    assert (answer(prlimit, 0), answer(prlimit, 42)) == (ALLOWED, EPERM)
    needed = (fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_DUPFD_CLOEXEC)
    assert {answer(fcntl_, 9, command) for command in needed} == {ALLOWED}
    F_SETOWN_EX, F_SET_RW_HINT = 15, 1036
    others = (fcntl.F_SETOWN, fcntl.F_SETSIG, F_SETOWN_EX, fcntl.F_SETLEASE, fcntl.F_NOTIFY, fcntl.F_SETLK)
    assert {answer(fcntl_, 9, command) for command in (*others, F_SET_RW_HINT, 1 << 31)} == {EPERM}
    flags = (os.O_NONBLOCK, os.O_ASYNC, os.O_NONBLOCK | os.O_ASYNC)
    assert [answer(fcntl_, 9, fcntl.F_SETFL, given) for given in flags] == [ALLOWED, EPERM, EPERM]
    FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
    assert (answer(ioctl, 9, termios.TCGETS), answer(ioctl, 9, termios.FIOCLEX)) == (ALLOWED, ALLOWED)
    asked = (termios.FIOASYNC, FIOSETOWN, SIOCSPGRP, termios.TIOCSTI)
    assert {answer(ioctl, 9, request) for request in asked} == {EPERM}


@pytest.mark.parametrize(
    ("header", "of_machine"),
    [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)],
)
def test_system_calls_have_the_kernels_numbers(header: str, of_machine: int) -> None:
    path = Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"{path} is not installed (Debian: linux-libc-dev)")
    found = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
    table = {name: numbers[of_machine] for name, numbers in system_calls.REFUSED.items()}
    machine = system_calls.MACHINES["aarch64" if of_machine else "x86_64"]
    table |= {"kill": machine.kill, "tgkill": machine.tgkill, "prlimit64": machine.prlimit64, "clone": machine.clone}
    table |= {"fcntl": machine.fcntl, "ioctl": machine.ioctl}
    table |= {"openat": machine.openat, **({} if of_machine else {**system_calls.REFUSED_X86, "open": machine.open_})}
    assert {name: found.get(name) for name in table} == table
