"""Teachers in a confined process: the same numbers, and what becomes of one that harms, is ended or is slow."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.support import hostile_teachers, onnx_models
from tests.support.hostile_teachers import TRIGGER
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory, SessionLost
from workers.onnx.sessions import confined_session, session_memory, session_process
from workers.onnx.sessions.confined_session import ConfinedSession, SessionLimits, limits_of
from workers.onnx.sessions.session import CUDA_PROVIDER, OnnxSession, cuda_providers
from workers.onnx.sessions.session_child import Output
from workers.onnx.sessions.shared_arrays import SharedArrays, SharedReader

ROWS = TRIGGER + 4


def pictures(rows: int = ROWS) -> NDArray[np.float32]:
    return np.random.default_rng(rows).normal(size=(rows, 3, 8, 8)).astype(np.float32)


@contextmanager
def opened(built: onnx.ModelProto, folder: Path, **changes: float) -> Iterator[ConfinedSession]:
    path = onnx_models.save(built, folder / "teacher.onnx")
    limits = limits_of(path, 1, 8)._replace(**changes)
    with closing(ConfinedSession(path, "images", "logits", threads=1, limits=limits)) as session:
        yield session


def test_session_in_a_confined_process_computes_what_one_in_this_process_does(tmp_path: Path) -> None:
    with opened(onnx_models.random_linear(), tmp_path) as session:
        here = OnnxSession(tmp_path / "teacher.onnx", "images", "logits", threads=1)
        assert (session.provider, session.missing) == (here.provider, ())
        for rows in (1, 5, 200):
            given = pictures(rows)
            np.testing.assert_array_equal(session.run(given), here.run(given))
            shared = session.empty(given.shape, given.dtype)
            shared[...] = given
            np.testing.assert_array_equal(session.run(shared), here.run(given))
            np.testing.assert_array_equal(session.run(shared[rows // 2 :]), here.run(given[rows // 2 :]))


def test_session_raises_an_error_of_the_graph_and_runs_the_next_batch(tmp_path: Path) -> None:
    with opened(onnx_models.random_linear(), tmp_path) as session:
        pid = session._child.process.pid
        with pytest.raises(InvalidTeacher, match=r"cannot process an input of shape \[2, 3, 4, 4\]"):
            session.run(np.zeros((2, 3, 4, 4), np.float32))
        assert session.run(pictures()).shape == (ROWS, 4)
        assert session._child.process.pid == pid


def test_session_that_loops_in_a_large_batch_is_ended_with_its_size_and_limit(tmp_path: Path) -> None:
    with opened(hostile_teachers.endless(), tmp_path, call_s=0.5) as session:
        assert session.run(pictures(1)).shape == (1, 4)
        process = session._child.process
        with pytest.raises(
            InvalidTeacher, match=f"did not finish {ROWS} pictures within .* s of processor time; a pic"
        ):
            session.run(pictures())
        assert process.returncode == -signal.SIGKILL
        # Another process takes up the work.
        assert session.run(pictures(TRIGGER)).shape == (TRIGGER, 4)


def test_session_first_call_of_a_shape_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with (
        opened(hostile_teachers.endless(), tmp_path, first_s=0.2) as session,
        pytest.raises(InvalidTeacher, match=f"did not finish {ROWS} pictures within 1 s of processor time"),
    ):
        session.run(pictures())


def test_session_limit_is_of_processor_time_that_another_load_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is kept from running for ten times its limit has not used it up."""
    with opened(onnx_models.random_linear(), tmp_path, call_s=0.2) as session:
        session.run(pictures(1))
        session._picture_s = {(3, 8, 8): 1e-6}
        os.kill(session._child.process.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (session._child.process.pid, signal.SIGCONT)).start()
        assert session.run(pictures()).shape == (ROWS, 4)
        # By the clock there is an end as well.
        monkeypatch.setattr(session_process, "CLOCK_FACTOR", 2)
        os.kill(session._child.process.pid, signal.SIGSTOP)
        with pytest.raises(InvalidTeacher, match="did not finish"):
            session.run(pictures())


def test_session_that_takes_memory_in_a_large_batch_is_out_of_memory_and_not_the_machine(tmp_path: Path) -> None:
    limit = 3 << 30
    with opened(hostile_teachers.memory_bomb(), tmp_path, memory_bytes=limit) as session:
        assert session.run(pictures(1)).shape == (1, 4)
        pid = session._child.process.pid
        with pytest.raises(OutOfMemory, match=f"no memory for {ROWS} pictures at once"):
            session.run(pictures())
        assert highest_kib(pid, "VmPeak") * 1024 <= limit
        assert session.run(pictures(TRIGGER)).shape == (TRIGGER, 4)


def highest_kib(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def test_session_of_a_process_that_has_no_limit_of_address_space_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where CUDA maps more than there is."""
    with opened(hostile_teachers.memory_bomb(), tmp_path) as session:
        session._child._on_gpu = True
        session._child._memory_bytes = 64 << 20
        monkeypatch.setattr(session_process, "LOOK_S", 0.01)
        session.run(pictures(1))
        with pytest.raises(OutOfMemory, match=f"no memory for {ROWS} pictures at once: .* more than the 0.1 GiB"):
            session.run(pictures())


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_session_crash_is_the_teachers_and_is_named_at_once(number: signal.Signals, tmp_path: Path) -> None:
    with opened(hostile_teachers.endless(), tmp_path, call_s=3.0) as session:
        session.run(pictures(1))
        started = time.monotonic()
        threading.Timer(0.3, os.kill, (session._child.process.pid, number)).start()
        with pytest.raises(InvalidTeacher, match=rf"crashed its process \({number.name}\) with {ROWS} pictures"):
            session.run(pictures())
        assert time.monotonic() - started < 30


def test_session_whose_process_is_ended_from_outside_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(hostile_teachers.endless(), tmp_path, call_s=0.5) as session:
        expected = session.run(pictures(1))
        os.kill(session._child.process.pid, signal.SIGKILL)
        np.testing.assert_array_equal(session.run(pictures(1)), expected)

        def end_each() -> Callable[[], object]:
            start, pids = session._start, []

            def started() -> object:
                told = start()
                pids.append(session._child.process.pid)
                threading.Timer(0.05, os.kill, (session._child.process.pid, signal.SIGKILL)).start()
                return told

            monkeypatch.setattr(session, "_start", started)
            return lambda: len(pids)

        count = end_each()
        session._child.process.kill()
        session._child.process.wait()
        with pytest.raises(SessionLost, match=r"ended by SIGKILL, as the kernel does where .* memory"):
            session.run(pictures())
        assert count() == confined_session.LOST_ATTEMPTS_MAX + 1


def test_session_whose_process_fails_of_itself_says_how(tmp_path: Path) -> None:
    with opened(onnx_models.random_linear(), tmp_path) as session:
        session._arguments["memory"] = 999_999  # no descriptor of the child
        session._child.end()
        with pytest.raises(SessionLost, match=r"with exit status 1, .*OSError.*Bad file descriptor"):
            session.run(pictures(1))


@pytest.mark.skipif(CUDA_PROVIDER not in onnxruntime.get_available_providers(), reason="it was built without CUDA")
def test_session_on_cuda_asks_for_the_provider_and_says_why_it_does_not_load(tmp_path: Path) -> None:
    """Its options travel as JSON to a process that finds no GPU here."""
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    with pytest.raises(DeviceUnavailable, match=r"cannot load its CUDA provider: lib|failure 35|no CUDA-capable"):
        ConfinedSession(
            *(path, "images", "logits"),
            threads=1,
            providers=cuda_providers(1 << 30, is_half=False),
            limits=limits_of(path, 1, 8),
        )


def test_session_answers_that_are_not_ours_end_its_process(tmp_path: Path) -> None:
    """Whoever has taken over the child may write what it likes."""
    with opened(onnx_models.random_linear(), tmp_path) as session:
        session.run(pictures(1))
        for answer in (
            b"x" * 100_000,
            b'{"rows": 13, "classes": 4}\n',
            b'{"rows": 12, "classes": 1000000000}\n',
            b'{"error": "SystemExit", "message": ""}\n',
            b"\n",
        ):
            session._child._pending += answer
            with pytest.raises(InvalidTeacher, match="the teacher's process does not give"):
                session.run(pictures())
            session._child._pending.clear()
            session.run(pictures(1))


def test_session_calls_are_cut_so_that_none_may_take_longer_than_an_hour(tmp_path: Path) -> None:
    with opened(onnx_models.random_linear(), tmp_path) as session:
        # What a picture of so small a network takes may be too little to be measured.
        assert session.rows_in_time(pictures(256)) >= 256
        session._picture_s = {(3, 8, 8): 2.0}
        assert session.rows_in_time(pictures(256)) == 60  # 60 pictures * 2 s * 30 is an hour
        session._picture_s = {(3, 8, 8): 500.0}
        assert session.rows_in_time(pictures(256)) == 1


def test_session_process_ends_with_its_session(tmp_path: Path) -> None:
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    session = ConfinedSession(path, "images", "logits", threads=1, limits=limits_of(path, 1, 1))
    process = session._child.process
    del session
    gc.collect()
    assert process.returncode == -signal.SIGKILL


def test_limits_are_the_machines_part_or_what_the_file_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(session_memory, "memory_bytes", lambda: 64 << 30)
    assert limits_of(path, 1, 2) == SessionLimits(16 << 30)
    assert limits_of(path, 2, 64).memory_bytes == (4 << 30) + 5000 + 2 * confined_session.THREAD_BYTES


# ------------------------------------------------------------------------------------------------------ shared arrays


def test_shared_arrays_are_seen_by_the_reader_and_their_memory_is_used_again() -> None:
    arrays = SharedArrays()
    reader = SharedReader(arrays.descriptor)
    first, second = (arrays.empty((3, 5), np.float32) for _ in range(2))
    first[...], second[...] = 1, np.arange(15).reshape(3, 5)
    offsets = [arrays.offset_of(first), arrays.offset_of(second[1:])]
    assert None not in offsets
    np.testing.assert_array_equal(reader.array(offsets[1], (2, 5), "float32"), second[1:])
    assert arrays.offset_of(second.T) is None
    assert arrays.offset_of(np.ones(3, np.float32)) is None
    view = first[1:]
    del first
    third = arrays.empty((3, 5), np.float32)
    assert arrays.offset_of(third) not in offsets  # a view keeps its memory
    del view
    fourth = arrays.empty((2, 5), np.float16)
    assert arrays.offset_of(fourth) == offsets[0]
    # Larger ones make the memory grow, beneath a reader that has mapped it.
    large = arrays.empty((1 << 20,), np.float32)
    large[...] = 7
    assert reader.array(arrays.offset_of(large), large.shape, "float32").min() == 7
    with pytest.raises(PermissionError):
        os.ftruncate(arrays.descriptor, 0)
    arrays.close()


def test_session_output_has_no_negative_size() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Output(rows=-1, classes=-4)
