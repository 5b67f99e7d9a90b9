"""Writing a cache: whole blocks, by several processes, through kills and full disks; the same bytes every time."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from store import (
    CacheBusy,
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    CacheReader,
    CacheSpec,
    CacheWriter,
    Catalog,
    InvalidArgument,
    NotStorable,
    layout,
)
from store.filesystem import lock_byte
from store.locks import write_lock
from store.spec import canonical_json
from store.statistics import STATISTICS
from tests.support.store_cases import (
    children,
    create,
    digests,
    make_logits,
    make_spec,
    tree,
    write_all,
    write_blocks,
    write_cache,
)

MANY_BLOCKS = make_spec(samples=4096 * 7 + 5, classes=2, views=4)  # 32 blocks, four of them short


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of MANY_BLOCKS, written by one process in order."""
    return tree(write_cache(tmp_path_factory.mktemp("peace"), MANY_BLOCKS).path)


def test_writer_gives_the_same_bytes_for_blocks_out_of_order_in_two_sittings(
    tmp_path: Path, peaceful: dict[str, bytes]
) -> None:
    writer = CacheWriter(tmp_path, MANY_BLOCKS, provenance={"device": "cpu"})
    order = random.Random(0).sample(writer.pending_blocks(), MANY_BLOCKS.blocks)
    write_blocks(writer, order[:11])
    assert sorted(order[11:]) == CacheWriter(tmp_path, MANY_BLOCKS).pending_blocks()
    write_blocks(CacheWriter(tmp_path, MANY_BLOCKS), order[11:])
    writer.finish()
    assert tree(writer.path) == peaceful


def test_writer_races_of_two_processes_for_every_block_give_the_same_bytes(
    tmp_path: Path, peaceful: dict[str, bytes]
) -> None:
    context = children()
    start = context.Barrier(2)
    racers = [context.Process(target=write_all, args=(tmp_path, MANY_BLOCKS, order, start, None)) for order in (1, -1)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert tree(tmp_path / MANY_BLOCKS.key) == peaceful


def test_writer_killed_at_random_moments_and_restarted_gives_the_same_bytes(
    tmp_path: Path, peaceful: dict[str, bytes]
) -> None:
    context, moments = children(), random.Random(1)
    group = tmp_path / MANY_BLOCKS.key
    kills = torn = 0
    committed: set[Path] = set()
    while kills < 25:
        listener, ready = context.Pipe(duplex=False)
        child = context.Process(target=write_all, args=(tmp_path, MANY_BLOCKS, 1, None, ready))
        child.start()
        assert listener.recv() == "opened"
        child.join(timeout=moments.uniform(0, 0.03))
        if child.exitcode is not None:  # everything is written: begin again, there are kills left
            shutil.rmtree(group)
            committed = set()
            continue
        child.kill()
        child.join()
        kills += 1
        now = set((group / "commits").glob("*.json"))
        assert committed <= now
        assert len(CacheWriter(tmp_path, MANY_BLOCKS).pending_blocks()) == MANY_BLOCKS.blocks - len(now)
        committed = now
        torn += len(list(group.glob("*/c/*/*"))) > 6 * len(now) or bool(list(group.rglob("*.partial")))
    assert torn > 0  # or the kills hit nothing
    writer = CacheWriter(tmp_path, MANY_BLOCKS)
    write_blocks(writer, writer.pending_blocks())
    writer.finish()
    assert tree(group) == peaceful


def test_writer_of_many_processes_that_create_one_cache_opens_the_same_one(tmp_path: Path) -> None:
    context = children()
    spec = make_spec()
    start = context.Barrier(4)
    listener, created_at = context.Pipe(duplex=False)
    racers = [context.Process(target=create, args=(tmp_path, spec, start, created_at)) for _ in range(4)]
    for racer in racers:
        racer.start()
    assert len({listener.recv() for _ in racers}) == 1
    for racer in racers:
        racer.join()
    assert [path.name for path in tmp_path.iterdir()] == [spec.key]
    assert CacheWriter(tmp_path, spec).pending_blocks() == [0, 1, 2]


def test_writer_leaves_the_files_of_another_one_alone(tmp_path: Path) -> None:
    spec = make_spec()
    writer = CacheWriter(tmp_path, spec)
    strays = [writer.path / f"logits/c/0/{within}/0.0123456789abcdef.partial" for within in (1, 2)]
    strays += [writer.path / f"max/c/0/{within}.0123456789abcdef.partial" for within in (1, 2)]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"half a chunk")
    other = CacheWriter(tmp_path, spec)
    write_blocks(other, [0, 2])
    assert [stray.exists() for stray in strays] == [True, False, True, False]
    write_blocks(other, [1])
    assert not list(writer.path.rglob("*.partial"))


def test_writer_waits_for_a_block_of_another_and_does_not_write_it_twice(tmp_path: Path) -> None:
    spec = make_spec()
    writer = CacheWriter(tmp_path, spec)
    logits = make_logits(spec)[:4096]
    with (writer.path / "zarr.json").open("r+b") as somebody:
        lock_byte(somebody.fileno(), 0)
        waiting = threading.Thread(target=writer.write_block, args=(0, logits))
        waiting.start()
        waiting.join(timeout=0.1)
        assert waiting.is_alive()
        assert writer.pending_blocks() == [0, 1, 2]
    waiting.join()
    first = (writer.path / "logits/c/0/0/0").stat()
    record = CacheWriter(tmp_path, spec).write_block(0, logits + 1)
    assert record.rows == 4096
    # Not the whole of it: reading the file may change its time of access.
    again = (writer.path / "logits/c/0/0/0").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    np.testing.assert_array_equal(np.fromfile(writer.path / "max/c/0/0", "<f4", 4096), logits.max(axis=1))


def test_writer_of_a_deleted_cache_raises_cache_not_found(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, make_spec())
    write_blocks(writer, [0])
    Catalog(tmp_path).delete(make_spec().key)
    with pytest.raises(CacheNotFound, match="deleted while it was being written"):
        write_blocks(writer, [1])
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_its_cache_from_deletion_in_the_middle_of_a_block(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, make_spec())
    with write_lock(writer.path, 1), pytest.raises(CacheBusy, match="being written"):
        Catalog(tmp_path).delete(make_spec().key)
    assert writer.pending_blocks() == [0, 1, 2]
    Catalog(tmp_path).delete(make_spec().key)


def test_writer_writes_a_cut_block_again_and_removes_the_marker_meanwhile(tmp_path: Path) -> None:
    spec = make_spec()
    writer = write_cache(tmp_path, spec)
    whole = tree(writer.path)
    os.truncate(writer.path / "std/c/0/1", 100)
    assert not writer.is_complete
    assert CacheWriter(tmp_path, spec).pending_blocks() == [1]
    with pytest.raises(CacheIncomplete):
        writer.finish()
    write_blocks(writer, [1])
    assert not (writer.path / "COMPLETE").exists()
    writer.finish()
    assert tree(writer.path) == whole
    assert writer.is_complete


def test_writer_has_everything_on_disk_before_the_record_and_the_record_before_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CacheWriter(tmp_path, make_spec(samples=100))
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.replace

    def note(event: str, path: str) -> None:
        relative = os.path.relpath(path, writer.path)
        events.append(f"{event} {re.sub(r'[0-9a-f]{32}', '*', relative)}")

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def replace(source: Path, target: Path) -> None:
        real_rename(source, target)
        note("rename", str(target))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_blocks(writer, [0])
    writer.finish()
    commit = events.index("rename commits/0-0.json")
    chunks = ["logits/c/0/0/0", *(f"{name}/c/0/0" for name in STATISTICS)]
    folders = ["logits/c/0/0", "logits/c/0", *(f"{name}/c/0" for name in STATISTICS)]
    for path in (*chunks, *folders):
        assert f"sync {path}" in events[:commit]
    for chunk in chunks:  # not of the file that was there before
        assert events.index(f"rename {chunk}") < events.index(f"sync {chunk}")
    assert events[commit - 1 :] == [
        "sync commits/0-0.json.*.partial",
        "rename commits/0-0.json",
        "sync commits",
        "sync COMPLETE.*.partial",
        "rename COMPLETE",
        "sync .",
    ]


def test_writer_that_finishes_too_early_says_how_much_is_missing(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, make_spec())
    write_blocks(writer, [0])
    with pytest.raises(CacheIncomplete, match="2 of 3 blocks are not committed, the first is block 1"):
        writer.finish()
    assert not writer.is_complete


def test_writer_add_provenance_lists_every_origin_once_and_never_refuses_a_cache(tmp_path: Path) -> None:
    spec = make_spec()
    writer = write_cache(tmp_path, spec)
    for device in ("H200", "EPYC", "H200"):
        CacheWriter(tmp_path, spec).add_provenance({"device": device, "tf32": False})
    found = CacheReader(tmp_path, spec).provenance["computed_on"]
    assert sorted(origin["device"] for origin in found) == ["EPYC", "H200"]
    (writer.path / layout.provenance_name(canonical_json({"device": "H200", "tf32": False}))).write_text("{")
    problems = [origin.get("problem") for origin in CacheReader(tmp_path, spec).provenance["computed_on"]]
    assert problems.count(None) == 1
    assert any("not JSON" in problem for problem in problems if problem)
    assert Catalog(tmp_path).verify(spec.key).ok


def test_writer_records_the_origin_of_a_block_before_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in between leaves no block whose origin is not known."""
    spec = make_spec()
    writer = CacheWriter(tmp_path, spec)

    def crash(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(CacheWriter, "_write_and_commit", crash)
    _, start, stop = spec.block_range(0)
    with pytest.raises(InterruptedError):
        writer.write_block(0, make_logits(spec)[start:stop], origin={"device": "H200"})
    assert (writer.path / layout.provenance_name(canonical_json({"device": "H200"}))).is_file()
    assert 0 in writer.pending_blocks()


def test_writer_that_finishes_twice_keeps_the_first_marker_and_provenance_joins(tmp_path: Path) -> None:
    spec = make_spec()
    writer = CacheWriter(tmp_path, spec, provenance={"device": "cpu"})
    write_blocks(writer, range(3))
    writer.finish({"seconds": 1.5})
    writer.finish({"seconds": 99})
    assert CacheReader(tmp_path, spec).provenance == {"device": "cpu", "seconds": 1.5}
    assert Catalog(tmp_path).get(spec.key).provenance == {"device": "cpu", "seconds": 1.5}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_writer_refuses_logits_that_are_not_finite_by_sample(tmp_path: Path, value: float, dtype: str) -> None:
    spec = make_spec(dtype=dtype, views=2)
    writer = CacheWriter(tmp_path, spec)
    logits = make_logits(spec, 1)[4096:8192]
    logits[7, 3] = value
    with pytest.raises(NotStorable, match="sample 4103 of view 1 has NaN or infinite logits"):
        writer.write_block(4, logits)
    assert len(writer.pending_blocks()) == 6


def test_writer_refuses_logits_beyond_float16_with_the_advice_to_use_float32(tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        spec = make_spec(dtype=dtype)
        writer = CacheWriter(tmp_path, spec)
        logits = make_logits(spec)[:4096]
        logits[0, 0] = 65504
        logits[9, 1] = -65505
        if dtype == "float32":
            writer.write_block(0, logits)
        else:
            with pytest.raises(NotStorable, match=r'sample 9 of view 0 .* 65505, .*dtype "float32"'):
                writer.write_block(0, logits)


def test_writer_refuses_anything_but_one_whole_block_of_float32(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, make_spec())
    logits = make_logits(make_spec())
    for wrong in (logits[:4095], logits[:4096, :9], logits[:4096].astype(np.float64), logits):
        with pytest.raises(InvalidArgument, match=r"take float32 logits of shape \(4096, 10\), not float"):
            writer.write_block(0, wrong)
    with pytest.raises(InvalidArgument, match="block 3 does not exist"):
        writer.write_block(3, logits[:4096])


def test_writer_refuses_what_is_not_its_cache(tmp_path: Path) -> None:
    spec, other = make_spec(), make_spec(samples=5000)
    shutil.move(write_cache(tmp_path, other).path, tmp_path / spec.key)
    with pytest.raises(CacheMismatch, match="samples: asked for 8292, found 5000"):
        CacheWriter(tmp_path, spec)
    (tmp_path / spec.key / "zarr.json").unlink()
    with pytest.raises(CacheCorrupt, match=r"zarr.json: the file is missing"):
        CacheWriter(tmp_path, spec)


def on_a_small_disk(folder: Path, scenario: str, samples: int) -> dict[str, Any]:
    """What a scenario of store_cases reports of 1800 KiB, of which 1 MiB is taken by ballast."""
    mount = 'mount -t tmpfs -o size=1800k tmpfs "$1" && exec "$0" -m tests.support.store_cases "$@"'
    command = ["unshare", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, "mount -t tmpfs t /mnt"], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    command += [mount, sys.executable, str(folder), scenario, str(samples)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


def test_writer_on_a_full_disk_commits_nothing_half_way_and_resumes(tmp_path: Path) -> None:
    # The ballast leaves room for four of six blocks; without it, all fit.
    (tmp_path / "disk").mkdir()
    report = on_a_small_disk(tmp_path / "disk", "fill", 4096 * 6)
    assert report["needed_bytes"] > report["free_bytes"]
    assert "nothing was committed" in report["message"]
    assert 0 < len(report["pending"]) < 6
    assert report["partial"] == report["left_of_the_block"] == []
    assert report["files"] == digests(write_cache(tmp_path / "peace", make_spec(samples=4096 * 6)).path)


def test_writer_on_a_disk_that_is_full_at_every_step_changes_no_byte(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    report = on_a_small_disk(tmp_path / "disk", "crawl", 4096 + 10)
    # Refused while it was created, at both blocks, and at the marker.
    assert list(dict.fromkeys(report["refused_at"])) == [-1, 2, 1, 0]
    assert report["strays"] == []
    assert report["files"] == digests(write_cache(tmp_path / "peace", make_spec(samples=4096 + 10)).path)


def test_create_group_has_no_thread_of_zarr_write_in_a_folder_that_it_may_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a full disk zarr's other threads went on after the first had failed, and put back what was deleted.
    written: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", lambda self, key, value: written.append(key))
        writer = CacheWriter(tmp_path, make_spec())
    assert written == []
    assert zarr.open_group(writer.path, mode="r")["logits"].shape == (1, 8292, 10)


def test_writer_opens_one_cache_for_specs_with_equal_fields(tmp_path: Path) -> None:
    first = CacheWriter(tmp_path, make_spec())
    second = CacheWriter(str(tmp_path), CacheSpec(**make_spec().model_dump()))
    assert first.path == second.path
