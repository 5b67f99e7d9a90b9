"""Room for new caches: what goes, in which order, what stays, and that nobody is overtaken."""

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from store import (
    CacheBusy,
    CacheIncomplete,
    CacheNotFound,
    CachePinned,
    CacheReader,
    CacheSpec,
    CacheWriter,
    Catalog,
    QuotaExceeded,
    chunk_files,
    documents,
)
from store.eviction import full_bytes, remove
from store.layout import size_bytes
from store.locks import write_lock
from tests.support.store_cases import children, is_held, make_logits, make_spec, tree, write_blocks, write_cache

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def make_cache(catalog: Catalog, seed: int, hour: int) -> str:
    """A small complete cache, used last at this hour; returns its key."""
    spec = make_spec(samples=100, augmentation_seed=seed)
    group = write_cache(catalog.root, spec).path
    (group / "LAST_USED").write_text((NOON + timedelta(hours=hour)).isoformat())
    return spec.key


def used_bytes(catalog: Catalog) -> int:
    return sum(entry.size_bytes for entry in catalog.list())


def keys(catalog: Catalog) -> set[str]:
    return {entry.key for entry in catalog.list()}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "caches")


# ------------------------------------------------------------------------------------------- order


def test_eviction_takes_the_least_recently_used_first_and_no_more_than_are_needed(catalog: Catalog) -> None:
    third, first, second, fourth = (make_cache(catalog, seed, hour) for seed, hour in enumerate((3, 1, 2, 4)))
    everything = used_bytes(catalog)
    assert catalog.make_room(1000, everything + 1000) == []
    one_byte_short = catalog.make_room(1000, everything + 999)
    assert [gone.key for gone in one_byte_short] == [first]
    assert one_byte_short[0].used_at == NOON + timedelta(hours=1)
    assert one_byte_short[0].size_bytes == everything - used_bytes(catalog)
    two = catalog.make_room(0, used_bytes(catalog) - catalog.get(second).size_bytes - 1)
    assert [gone.key for gone in two] == [second, third]
    assert keys(catalog) == {fourth}
    assert sorted(os.listdir(catalog.root)) == sorted([".turn", fourth])


def test_eviction_counts_a_cache_that_was_never_used_as_old_as_its_last_block(catalog: Catalog) -> None:
    used = make_cache(catalog, 0, 0)
    fresh, stale = (CacheWriter(catalog.root, make_spec(augmentation_seed=seed)) for seed in (1, 2))
    for writer in (fresh, stale):
        write_blocks(writer, [0])
    before_noon = (NOON - timedelta(hours=1)).timestamp()
    os.utime(stale.path / "commits", (before_noon, before_noon))
    gone = catalog.make_room(0, 0)
    assert [one.key for one in gone] == [stale.spec.key, used, fresh.spec.key]


def test_eviction_takes_a_corrupt_cache_like_any_other(catalog: Catalog) -> None:
    key = make_cache(catalog, 0, 0)
    (catalog.root / key / "zarr.json").unlink()
    assert [gone.key for gone in catalog.make_room(1, 0 + 1)] == [key]


# ----------------------------------------------------------------------------------------- who stays


def test_eviction_leaves_pinned_held_and_named_caches_and_those_being_written(catalog: Catalog) -> None:
    pinned, held, named, written, newest = (make_cache(catalog, seed, seed) for seed in range(5))
    catalog.pin(pinned)
    hold = catalog.hold(held)
    writer = CacheWriter(catalog.root, make_spec(samples=100, augmentation_seed=3))
    with write_lock(writer.path, 0):
        gone = catalog.make_room(0, used_bytes(catalog) - 1, [named])
        assert [one.key for one in gone] == [newest]
        with pytest.raises(QuotaExceeded) as caught:
            catalog.make_room(0, used_bytes(catalog) - 1, [named])
    assert all(key[:12] in str(caught.value) for key in (pinned, held, named, written))
    assert keys(catalog) == {pinned, held, named, written}
    hold.release()
    assert [one.key for one in catalog.make_room(0, used_bytes(catalog) - 1)] == [held]


def test_eviction_takes_nothing_without_room_and_the_refusal_has_the_figures(catalog: Catalog) -> None:
    pinned, held, free = (make_cache(catalog, seed, seed) for seed in range(3))
    catalog.pin(pinned)
    hold = catalog.hold(held)
    with pytest.raises(QuotaExceeded) as caught:
        catalog.make_room(1_000_000, 1_000_001)
    hold.release()
    assert keys(catalog) == {pinned, held, free}
    message = str(caught.value)
    assert "quota of 1000001 bytes has no room for new caches of 1000000 bytes" in message
    assert f"{catalog.get(pinned).size_bytes} bytes pinned ({pinned[:12]})" in message
    assert f"{catalog.get(held).size_bytes} bytes in use ({held[:12]})" in message
    assert "unpin a cache" in message
    assert "raise the quota" in message


def test_lease_ends_with_its_owner(catalog: Catalog) -> None:
    key = make_cache(catalog, 0, 0)
    hold = catalog.hold(key)
    again = catalog.hold(key)
    hold.release()
    hold.release()
    with pytest.raises(QuotaExceeded):
        catalog.make_room(1, 1)
    del again
    catalog.make_room(1, 1)
    with pytest.raises(CacheNotFound, match="was deleted meanwhile"):
        catalog.hold(key)


def hold_until_told(root: Path, key: str, pipe: Connection) -> None:
    """Child: hold a cache and say so."""
    hold = Catalog(root).hold(key)
    pipe.send("held")
    pipe.recv()
    hold.release()


def test_lease_of_a_killed_process_ends(catalog: Catalog) -> None:
    key = make_cache(catalog, 0, 0)
    here, there = children().Pipe()
    process = children().Process(target=hold_until_told, args=(catalog.root, key, there))
    process.start()
    assert here.recv() == "held"
    with pytest.raises(QuotaExceeded, match=rf"in use \({key[:12]}\)"):
        catalog.make_room(1, 1)
    process.kill()
    process.join()
    assert [gone.key for gone in catalog.make_room(1, 1)] == [key]


def test_lease_of_an_open_reader_keeps_its_cache_from_eviction(catalog: Catalog) -> None:
    spec = make_spec(samples=100)
    write_cache(catalog.root, spec)

    descriptors = len(os.listdir("/proc/self/fd"))
    readers = [CacheReader.from_key(catalog.root, spec.key) for _ in range(50)]
    while len(readers) > 1:
        readers.pop().close()
    assert is_held(catalog, spec.key)
    copy = pickle.loads(pickle.dumps(readers[0]))
    readers.pop()  # whoever forgets a reader lets go of it all the same
    assert is_held(catalog, spec.key)
    for _ in range(2):
        copy.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not is_held(catalog, spec.key)


def test_lease_of_a_reader_that_could_not_be_opened_ends(catalog: Catalog) -> None:
    spec = make_spec(samples=100)
    CacheWriter(catalog.root, spec)
    with pytest.raises(CacheIncomplete) as caught:
        CacheReader(catalog.root, spec)
    assert not is_held(catalog, spec.key)
    assert spec.key in str(caught.value)


def close_in_a_fork(root: Path, spec: CacheSpec, pipe: Connection) -> None:
    """Child: open a reader that a fork of this process closes; say so, and keep it until told."""
    reader = CacheReader(root, spec)
    fork = os.fork()
    if not fork:
        reader.close()
        os._exit(0)
    os.waitpid(fork, 0)
    pipe.send("closed in the fork")
    pipe.recv()


def test_lease_is_not_ended_by_a_fork_that_closes_its_reader(catalog: Catalog) -> None:
    spec = make_spec(samples=100)
    write_cache(catalog.root, spec)
    here, there = children().Pipe()
    process = children().Process(target=close_in_a_fork, args=(catalog.root, spec, there))
    process.start()
    assert here.recv() == "closed in the fork"
    assert is_held(catalog, spec.key)
    here.send("enough")
    process.join()
    assert process.exitcode == 0
    assert not is_held(catalog, spec.key)


def test_lease_of_verify_keeps_the_cache_from_eviction(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_cache(catalog, 0, 0)
    held = []
    read_chunk = chunk_files.read_chunk

    def read_and_look(group: Path, spec: CacheSpec, array: str, block: int, record: documents.BlockRecord) -> object:
        held.append(is_held(catalog, key))
        return read_chunk(group, spec, array, block, record)

    monkeypatch.setattr(chunk_files, "read_chunk", read_and_look)
    assert catalog.verify(key).ok
    assert set(held) == {True}
    assert not is_held(catalog, key)


def test_reader_keeps_its_mapping_of_an_evicted_cache(catalog: Catalog) -> None:
    spec = make_spec()
    write_cache(catalog.root, spec)
    reader = CacheReader(catalog.root, spec)
    catalog.delete(spec.key)
    rows = np.arange(spec.samples)
    assert (reader.gather(0, rows) == make_logits(spec).astype(spec.dtype)).all()


# --------------------------------------------------------------------------------------- reservations


def test_full_bytes_is_never_less_than_a_complete_cache_has(catalog: Catalog) -> None:
    for spec in (make_spec(samples=1, classes=2, views=40), make_spec(dtype="float32", samples=4097)):
        writer = CacheWriter(catalog.root, spec, provenance={"retort": "1.0"})
        for number in range(8):
            writer.add_provenance({"provider": "CUDAExecutionProvider", "device": f"NVIDIA H200 of node {number}"})
        write_blocks(writer, writer.pending_blocks())
        writer.finish()
        catalog.touch(spec.key)
        catalog.pin(spec.key)
        spare = full_bytes(spec) - size_bytes(writer.path)
        assert 0 <= spare < 4096 + 512 * spec.blocks


def test_reservation_counts_as_large_as_the_cache_will_be(catalog: Catalog) -> None:
    first, second = (make_spec(augmentation_seed=seed) for seed in (1, 2))
    quota = 2 * full_bytes(first) - 1
    with catalog.reserve([first], quota, {"device": "cpu"}) as reservation:
        assert reservation.evicted == []
        entry = catalog.get(first.key)
        assert (entry.state, entry.rows_committed, entry.provenance) == ("partial", 0, {"device": "cpu"})
        with pytest.raises(QuotaExceeded, match=f"{full_bytes(first)} bytes in use"):
            catalog.reserve([second], quota)
        assert keys(catalog) == {first.key}
        # Another who wants the same one needs no room of his own.
        catalog.reserve([first], quota).release()
    # Nobody has taken the promise up, so only the empty cache's own bytes count.
    with catalog.reserve([second], quota) as reservation:
        assert reservation.evicted == []
    with catalog.reserve([second], full_bytes(second)) as reservation:
        assert [gone.key for gone in reservation.evicted] == [first.key]


def test_reservation_of_complete_caches_needs_no_room_at_any_quota(catalog: Catalog) -> None:
    other, wanted = (make_cache(catalog, seed, seed) for seed in (1, 2))
    spec = make_spec(samples=100, augmentation_seed=2)
    with catalog.reserve([spec], quota_bytes=1) as reservation:
        assert reservation.evicted == []
        with pytest.raises(QuotaExceeded, match=wanted[:12]):
            catalog.make_room(1, 1)
    with catalog.reserve([make_spec(augmentation_seed=3)]) as reservation:
        assert reservation.evicted == []
    assert {other, wanted} < keys(catalog)


def test_reservation_sweeps_the_leftovers_of_a_killed_eviction(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Path) -> None:
        raise KeyboardInterrupt

    make_cache(catalog, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            catalog.make_room(1, 1)
    assert any(name.startswith(".deleted-") for name in os.listdir(catalog.root))
    spec = make_spec(augmentation_seed=1)
    catalog.reserve([spec]).release()
    assert sorted(os.listdir(catalog.root)) == sorted([".turn", spec.key])


def reserve_at_once(root: Path, spec: CacheSpec, quota_bytes: int, start: Barrier, pipe: Connection) -> None:
    """Child: reserve one cache together with others who do, tell how it went, and hold it until told."""
    start.wait()
    try:
        reservation = Catalog(root).reserve([spec], quota_bytes)
    except QuotaExceeded:
        pipe.send(False)
        return
    pipe.send(True)
    pipe.recv()
    reservation.release()


def test_reservation_of_many_at_once_gives_room_to_those_who_fit(catalog: Catalog) -> None:
    specs = [make_spec(samples=100, augmentation_seed=seed) for seed in range(6)]
    quota = 3 * full_bytes(specs[0]) - 1  # for two
    start = children().Barrier(len(specs))
    pipes, processes = [], []
    for spec in specs:
        here, there = children().Pipe()
        pipes.append(here)
        processes.append(children().Process(target=reserve_at_once, args=(catalog.root, spec, quota, start, there)))
        processes[-1].start()
    answers = [pipe.recv() for pipe in pipes]
    for pipe, got_room in zip(pipes, answers, strict=True):
        if got_room:
            pipe.send("enough")
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(answers) == 2
    assert keys(catalog) == {spec.key for spec, got_room in zip(specs, answers, strict=True) if got_room}


# ------------------------------------------------------------------------------- pins, holds, evictions, in a race


def keep_each(root: Path, names: list[str], how: str, start: Barrier, pipe: Connection) -> None:
    """Child: pin or hold one cache after the other, each at the moment at which it is evicted; tell which were kept."""
    catalog = Catalog(root)
    kept = []
    with ExitStack() as holding:
        for name in names:
            start.wait()
            try:
                if how == "pin":
                    catalog.pin(name)
                else:
                    holding.enter_context(catalog.hold(name))
                kept.append(name)
            except CacheNotFound:
                pass
        pipe.send(kept)
        pipe.recv()


@pytest.mark.parametrize("how", ["pin", "hold"])
def test_reservation_that_was_given_keeps_its_cache(catalog: Catalog, how: str) -> None:
    names = [f"{number:064x}" for number in range(200)]
    template = CacheWriter(catalog.root / "template", make_spec()).path
    for name in names:
        shutil.copytree(template, catalog.root / name)
    start = children().Barrier(2)
    here, there = children().Pipe()
    process = children().Process(target=keep_each, args=(catalog.root, names, how, start, there))
    process.start()
    evicted = []
    for name in names:
        start.wait()
        try:
            remove(catalog.root / name)
            evicted.append(name)
        except (CacheBusy, CachePinned):
            pass
    kept = here.recv()
    assert keys(catalog) == set(kept)
    assert sorted([*kept, *evicted]) == sorted(names)
    here.send("enough")
    process.join()
    assert process.exitcode == 0


# ---------------------------------------------------------------------------------------------- pins


@pytest.mark.parametrize("complete", [True, False])
def test_pin_keeps_a_cache_and_changes_nothing_in_it(catalog: Catalog, complete: bool) -> None:
    spec = make_spec()
    writer = CacheWriter(catalog.root, spec)
    write_blocks(writer, range(3 if complete else 1))
    if complete:
        writer.finish()
    before = tree(writer.path)
    assert not catalog.get(spec.key).pinned
    for _ in range(2):
        catalog.pin(spec.key)
        assert Catalog(catalog.root).get(spec.key).pinned
    assert tree(writer.path) == {**before, "PINNED": (writer.path / "PINNED").read_bytes()}
    with pytest.raises(CachePinned, match="unpin it first"):
        catalog.delete(spec.key)
    with pytest.raises(QuotaExceeded):
        catalog.make_room(1, 1)
    if complete:
        assert catalog.verify(spec.key).ok
        CacheReader(catalog.root, spec).close()
    write_blocks(CacheWriter(catalog.root, spec), writer.pending_blocks())
    assert catalog.get(spec.key).pinned
    for _ in range(2):
        catalog.unpin(spec.key)
        assert not catalog.get(spec.key).pinned
    catalog.delete(spec.key)


@pytest.mark.parametrize("ask", [Catalog.pin, Catalog.unpin, Catalog.hold])
def test_pin_and_lease_of_a_missing_cache_are_refused(catalog: Catalog, ask: Callable[[Catalog, str], object]) -> None:
    with pytest.raises(CacheNotFound, match="a" * 64):
        ask(catalog, "a" * 64)
