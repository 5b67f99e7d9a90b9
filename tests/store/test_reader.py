"""Reading a cache: the right rows of every chunk, mapped or loaded, and nothing but a whole, right cache."""

import ctypes
import gc
import mmap
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from store import (
    AddressSpaceExhausted,
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    CacheReader,
    CacheSpec,
    CacheWriter,
    InvalidArgument,
    ReaderClosed,
    RowOutOfRange,
    mapped_range,
)
from store.chunk_map import map_chunks
from store.memory_limit import memory_bytes
from tests.support.store_cases import (
    children,
    gather_in_little_address_space,
    make_logits,
    make_spec,
    write_blocks,
    write_cache,
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """Three blocks in each of two views."""
    spec = make_spec(views=2)
    root = tmp_path_factory.mktemp("caches")
    write_cache(root, spec)
    return CacheReader(root, spec)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_reader_gather_equals_take_of_the_logits_written(tmp_path: Path, classes: int, dtype: str) -> None:
    spec = make_spec(classes=classes, dtype=dtype, samples=4096 + 77, views=2)
    write_cache(tmp_path, spec)
    reader = CacheReader(tmp_path, spec)
    order = np.random.default_rng(0).permutation(spec.samples)
    rows = np.concatenate([[0, 4095, 4096, spec.samples - 1, 4096, 0], order[:250]])
    for view in (1, 0):
        truth = make_logits(spec, view).astype(dtype)
        np.testing.assert_array_equal(reader.logits(view), truth)
        found = reader.gather(view, rows)
        assert found.dtype == spec.numpy_dtype
        np.testing.assert_array_equal(found, truth[rows])
        epoch = reader.row_map(view, order)
        assert len(epoch) == spec.samples
        out = np.empty((256, classes), dtype)
        for start in range(0, spec.samples - 256, 1000):
            assert epoch.gather(start, start + 256, out) is out
            np.testing.assert_array_equal(out, truth[order[start : start + 256]])
        np.testing.assert_array_equal(epoch.gather(4096, 9999), truth[order[4096:]])


def test_reader_has_other_logits_and_statistics_for_each_view(reader: CacheReader) -> None:
    for view in (0, 1):
        truth = make_logits(reader.spec, view)
        np.testing.assert_array_equal(reader.statistics(view)["max"], truth.max(axis=1))
        np.testing.assert_array_equal(reader.gather(view, np.array([5])), truth[[5]].astype(np.float16))
    assert not reader.statistics(0)["max"].flags.writeable


@pytest.mark.parametrize("wrong", [8292, -1, 2**40, -(2**62)])
def test_reader_refuses_a_sample_outside_the_cache_before_memory_is_touched(reader: CacheReader, wrong: int) -> None:
    rows = np.array([1, 8291, wrong, 2])
    for ask in (reader.gather, reader.row_map):
        with pytest.raises(RowOutOfRange, match=f"sample {wrong} does not exist: there are 8292"):
            ask(0, rows)
    with pytest.raises(RowOutOfRange, match="sample 18446744073709551615 does not exist"):
        reader.gather(0, np.array([2**64 - 1], np.uint64))


@pytest.mark.parametrize("view", [-1, 2])
def test_reader_refuses_a_view_outside_the_cache(reader: CacheReader, view: int) -> None:
    for ask in (
        lambda: reader.gather(view, np.array([0])),
        lambda: reader.logits(view),
        lambda: reader.statistics(view),
    ):
        with pytest.raises(RowOutOfRange, match=f"view {view} does not exist: there are 2"):
            ask()


def test_reader_takes_rows_of_any_integers_and_none_at_all(reader: CacheReader) -> None:
    expected = reader.gather(0, np.array([3, 1]))
    for dtype in (np.uint8, np.int32, np.uint64):
        np.testing.assert_array_equal(reader.gather(0, np.array([3, 1], dtype)), expected)
    assert reader.gather(0, np.array([], np.int64)).shape == (0, 10)
    for wrong in (np.array([1.0]), np.array([[1]]), np.array([True])):
        with pytest.raises(InvalidArgument, match="rows must be integers in one dimension"):
            reader.gather(0, wrong)


def test_reader_refuses_an_out_array_that_would_be_copied_or_cut(reader: CacheReader) -> None:
    right = np.empty((2, 10), np.float16)
    assert reader.gather(0, np.array([1, 2]), right) is right
    for wrong in (right.astype(np.float32), right[:1], np.empty((2, 20), np.float16)[:, ::2]):
        with pytest.raises(InvalidArgument, match=r"out must be a C-contiguous float16 array of shape \(2, 10\)"):
            reader.gather(0, np.array([1, 2]), wrong)


def test_reader_pickles_as_its_path(reader: CacheReader) -> None:
    pickled = pickle.dumps(reader)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert again.spec == reader.spec
    rows = np.arange(0, 8292, 41)
    np.testing.assert_array_equal(again.gather(1, rows), reader.gather(1, rows))


def test_reader_that_is_closed_or_forgotten_maps_nothing(tmp_path: Path) -> None:
    def mapped() -> bool:
        return spec.key in Path("/proc/self/maps").read_text()

    spec = make_spec()
    write_cache(tmp_path, spec)
    with CacheReader(tmp_path, spec) as reader:
        epoch = reader.row_map(0, np.arange(10))
        assert mapped()
    reader.close()
    assert not mapped()
    for use in (lambda: reader.gather(0, np.array([0])), lambda: epoch.gather(0, 1), lambda: epoch.prefetch(0, 1)):
        with pytest.raises(ReaderClosed):
            use()
    last = CacheReader(tmp_path, spec).row_map(0, np.arange(10))
    gc.collect()
    np.testing.assert_array_equal(last.gather(0, 10), make_logits(spec)[:10].astype(np.float16))  # it keeps the map
    del last
    gc.collect()
    assert not mapped()


def test_reader_survives_the_deletion_of_its_cache(tmp_path: Path) -> None:
    spec = make_spec()
    write_cache(tmp_path, spec)
    reader = CacheReader(tmp_path, spec)
    shutil.rmtree(reader.path)
    np.testing.assert_array_equal(reader.gather(0, np.arange(8292)), make_logits(spec).astype(np.float16))


@pytest.mark.parametrize(
    ("spare_bytes", "kind"),
    [
        (100 << 30, "huge"),  # two files, 2 MiB pages and 43682-byte rows: 92 GB of addresses
        (400 << 20, "page"),  # 4 KiB pages: 179 MB
        (100 << 20, "loaded"),  # the rows themselves: 22 MB
    ],
)
def test_chunk_map_is_tighter_with_less_address_space_and_then_loaded(
    odd_rows: tuple[Path, CacheSpec], spare_bytes: int, kind: str
) -> None:
    context = children()
    listener, answer = context.Pipe(duplex=False)
    child = context.Process(target=gather_in_little_address_space, args=(*odd_rows, spare_bytes, answer))
    child.start()
    answer.close()
    found, rows = listener.recv()
    child.join()
    assert found == kind
    np.testing.assert_array_equal(rows, make_logits(odd_rows[1]).astype(np.float16)[::-7])


@pytest.fixture(scope="module")
def odd_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CacheSpec]:
    """ImageNet-21k rows: no power of two in their size but one, so strides of rows and pages seldom meet."""
    spec = make_spec(classes=21841, samples=300)
    root = tmp_path_factory.mktemp("caches")
    write_cache(root, spec)
    return root, spec


def test_chunk_map_loads_more_files_than_the_kernel_maps(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 1 << 17:
        pytest.skip("this machine maps more files than a test should open")
    rows = np.arange(8, dtype=np.float16).reshape(4, 2)
    path = tmp_path / "chunk"
    path.write_bytes(rows.tobytes() + b"csum")
    chunks = map_chunks([path] * (limit // 4 + 1), 4, 2, np.dtype("<f2"))
    assert chunks.kind == "loaded"
    np.testing.assert_array_equal(chunks.rows[-4:], rows)
    with pytest.raises(AddressSpaceExhausted, match=r"can neither be mapped nor loaded: raise vm\.max_map_count"):
        map_chunks([path] * (limit // 4 + 1), 4096, 1_000_000, np.dtype("<f2"))


def pages_in_memory(path: Path) -> set[tuple[str, int]]:
    """("view/block", page) of the pages of a logits chunk file that are in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        flags = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), flags) == 0
    return {("/".join(path.parts[-3:-1]), page) for page, flag in enumerate(flags) if flag & 1}


class PageCache:
    """Which pages of a cache's logits are in memory."""

    def __init__(self, group: Path) -> None:
        self._files = sorted((group / "logits/c").glob("*/*/0"))

    def drop(self) -> None:
        """All but those that a process has touched; skips the test where that cannot be."""
        before = self.pages()
        for path in self._files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if before and self.pages() == before:
            pytest.skip("needs a file system whose pages can be dropped from memory")

    def pages(self) -> set[tuple[str, int]]:
        """("view/block", page)."""
        return set[tuple[str, int]]().union(*map(pages_in_memory, self._files))

    def wait_for(self, expected: set[tuple[str, int]]) -> None:
        """Until these are there: what reads them goes on in the background. Fails if there are others."""
        deadline = time.monotonic() + 20
        while not expected <= self.pages():
            assert time.monotonic() < deadline, expected - self.pages()
        assert self.pages() == expected


def pages_of(*rows: int, view: int = 0) -> set[tuple[str, int]]:
    """("view/block", page) of rows of 1000 float16."""
    byte_ranges = [(row // 4096, row % 4096 * 2000, row % 4096 * 2000 + 2000) for row in rows]
    return {
        (f"{view}/{block}", page)
        for block, start, stop in byte_ranges
        for page in range(start // mmap.PAGESIZE, (stop - 1) // mmap.PAGESIZE + 1)
    }


def read_ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_prefetch_beyond_memory_reads_the_rows_not_asked_for_before_and_nothing_else(tmp_path: Path) -> None:
    spec = make_spec(classes=1000, samples=3 * 4096)
    cached = PageCache(write_cache(tmp_path, spec).path)
    order = np.array([7000, 3, 12287, 5000, 9000, 2000])
    with CacheReader(tmp_path, spec) as reader:
        reader.exceeds_memory = True
        rows = reader.row_map(0, order)
        cached.drop()
        rows.prefetch(0, 3)
        cached.wait_for(pages_of(7000, 3, 12287))
        rows.gather(3, 4)  # a page fault now reads nothing around it
        assert cached.pages() == pages_of(7000, 3, 12287, 5000)
        cached.drop()  # what nobody has touched yet
        assert cached.pages() == pages_of(5000)
        rows.prefetch(0, 99)
        cached.wait_for(pages_of(5000, 9000, 2000))
        np.testing.assert_array_equal(rows.gather(0, 6), make_logits(spec)[order].astype(np.float16))


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_prefetch_of_a_view_that_fits_reads_a_few_rows_and_then_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """250 rows of it: as many as take the time of the whole."""
    if kernel == "old":
        monkeypatch.setattr("store.mapped_range._MADV_POPULATE_READ", 9999)
    spec = make_spec(classes=1000, samples=2 * 4096, views=2)
    cached = PageCache(write_cache(tmp_path, spec).path)
    whole = {(f"1/{block}", page) for block in range(2) for page in range(4096 * 2000 // mmap.PAGESIZE)}
    order = np.random.default_rng(0).permutation(spec.samples)
    with CacheReader(tmp_path, spec) as reader:
        rows = reader.row_map(1, order)
        cached.drop()
        rows.prefetch(0, 200)
        cached.wait_for(pages_of(*order[:200].tolist(), view=1))
        assert not read_ahead_threads()
        rows.prefetch(100, 251)
        for thread in read_ahead_threads():
            thread.join()
        cached.wait_for(whole | cached.pages())
        # The kernel may read on beyond a piece, to the checksum; no file of another view is touched.
        assert {block for block, _ in cached.pages()} == {"1/0", "1/1"}
        rows.prefetch(251, spec.samples)
        assert not read_ahead_threads()
        truth = make_logits(spec, 1).astype(np.float16)
        np.testing.assert_array_equal(rows.gather(0, 500), truth[order[:500]])


def test_prefetch_leaves_a_view_alone_that_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(classes=1000, samples=4096)
    write_cache(tmp_path, spec)
    advised: list[int] = []
    with CacheReader(tmp_path, spec) as reader:
        reader.logits(0)
        monkeypatch.setattr(reader._chunks._range, "prefetch", lambda *_: advised.append(1))
        monkeypatch.setattr(reader._chunks._range, "read_in_order", lambda *_: advised.append(2))
        rows = reader.row_map(0, np.arange(spec.samples))
        rows.prefetch(0, 100)
        rows.prefetch(100, spec.samples)
    assert advised == []


def test_reader_close_ends_reading_in_order_between_two_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(classes=1000, samples=2 * 4096)
    cached = PageCache(write_cache(tmp_path, spec).path)
    reader = CacheReader(tmp_path, spec)
    mapped = reader._chunks._range
    assert mapped is not None
    rows = reader.row_map(0, np.arange(spec.samples))
    cached.drop()
    begun, go_on, done = threading.Semaphore(0), threading.Event(), []
    unmap = mapped._unmap

    class Kernel:
        mincore = mapped_range._libc.mincore

        @staticmethod
        def madvise(_start: int, length: int, advice: int) -> int:
            if advice != mmap.MADV_WILLNEED:
                begun.release()
                go_on.wait()
                done.append(length)
            return 0

    monkeypatch.setattr(mapped_range, "_libc", Kernel)
    monkeypatch.setattr(mapped, "_unmap", lambda: done.append(0) or unmap())
    rows.prefetch(0, spec.samples)
    readers = read_ahead_threads()
    for _ in readers:
        begun.acquire()
    closing = threading.Thread(target=reader.close)
    closing.start()
    assert mapped._stop.wait(20)
    go_on.set()
    closing.join()
    assert done == [4 << 20, 4 << 20, 0]
    assert not any(thread.is_alive() for thread in readers)
    with pytest.raises(ReaderClosed):
        rows.prefetch(0, 1)


def test_chunk_map_asks_for_huge_pages_until_rows_beyond_memory_are_prefetched(reader: CacheReader) -> None:
    def flags() -> set[str]:
        smaps = Path("/proc/self/smaps").read_text()
        mapped = smaps[smaps.index(f"{reader.spec.key}/logits/c/0/0/0") :]
        return set(mapped[mapped.index("VmFlags:") :].splitlines()[0].split())

    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this kernel has no transparent huge pages")
    assert "hg" in flags()
    reader.row_map(0, np.array([5])).prefetch(0, 1)
    assert {"hg", "rr"} & flags() == {"hg"}
    reader.exceeds_memory = True
    try:
        reader.row_map(0, np.array([5])).prefetch(0, 1)
    finally:
        reader.exceeds_memory = False
    assert {"hg", "rr"} & flags() == {"rr"}


def test_memory_bytes_are_the_machine_s_or_the_least_limit_on_it(tmp_path: Path) -> None:
    contents = {"unlimited": "max", "wide": str(1 << 62), "narrow": "123456789\n", "strange": ""}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    machine = memory_bytes([])
    assert machine == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_bytes([tmp_path / name for name in ("unlimited", "wide", "strange", "absent")]) == machine
    assert memory_bytes([tmp_path / name for name in ("wide", "narrow", "unlimited")]) == 123456789


def test_reader_exceeds_memory_with_a_view_of_more_than_half_of_it(
    reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not reader.exceeds_memory
    view_bytes = 8292 * 10 * 2
    for memory, exceeds in ((2 * view_bytes, False), (2 * view_bytes - 1, True)):
        monkeypatch.setattr("store.reader.memory_bytes", lambda memory=memory: memory)
        assert pickle.loads(pickle.dumps(reader)).exceeds_memory is exceeds


def test_reader_names_each_field_of_another_spec_in_the_folder(tmp_path: Path) -> None:
    asked, lies_there = make_spec(), make_spec(augmentation_seed=3, preprocessing={"mean": [0.5], "layout": "NCHW"})
    shutil.move(write_cache(tmp_path, lies_there).path, tmp_path / asked.key)
    with pytest.raises(CacheMismatch) as caught:
        CacheReader(tmp_path, asked)
    assert "augmentation_seed: asked for 0, found 3" in str(caught.value)
    assert "preprocessing.mean: asked for [0.5,0.25,0.125], found [0.5]" in str(caught.value)
    assert "classes" not in str(caught.value)
    with pytest.raises(CacheMismatch, match="foreign or edited"):
        CacheReader.from_key(tmp_path, asked.key)


def test_reader_of_a_missing_cache_names_the_closest_one(tmp_path: Path) -> None:
    for changes in ({"views": 5, "dtype": "float32"}, {"views": 7}, {"teacher_sha256": "c3" * 32}):
        CacheWriter(tmp_path, make_spec(**changes))
    (tmp_path / ("0" * 64)).mkdir()  # rubbish is passed over
    closest = make_spec(views=7).key
    with pytest.raises(CacheNotFound, match=f"closest is {closest}, which differs in views: asked for 1, found 7$"):
        CacheReader(tmp_path, make_spec())
    stranger = make_spec(teacher_sha256="d4" * 32, dataset_fingerprint="e5" * 32)
    with pytest.raises(CacheNotFound, match="nor any of this teacher or dataset among the 4"):
        CacheReader(tmp_path, stranger)
    with pytest.raises(CacheNotFound, match="among the 0"):
        CacheReader(tmp_path / "nowhere", stranger)


def test_reader_refuses_an_unfinished_cache_with_its_progress(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, make_spec())
    write_blocks(writer, [0, 2])
    with pytest.raises(CacheIncomplete, match=r"2 of 3 blocks are committed"):
        CacheReader(tmp_path, make_spec())
    write_blocks(writer, [1])
    with pytest.raises(CacheIncomplete, match=r"3 of 3 blocks are committed and there is no COMPLETE"):
        CacheReader(tmp_path, make_spec())


def test_reader_finds_a_flipped_bit_in_logits_that_it_loads(tmp_path: Path) -> None:
    spec = make_spec(views=2)
    path = write_cache(tmp_path, spec).path / "logits/c/1/1/0"
    flip_bit(path, 40_000)
    reader = CacheReader(tmp_path, spec)
    reader.logits(0)
    with pytest.raises(CacheCorrupt, match=r"logits/c/1/1/0: content of checksum .* damaged"):
        reader.logits(1)


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_reader_refuses_another_format_version_and_names_both(tmp_path: Path) -> None:
    spec = make_spec()
    path = write_cache(tmp_path, spec).path / "zarr.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CacheCorrupt, match="format version 2, but this Retort reads version 1"):
        CacheReader(tmp_path, spec)


@pytest.mark.parametrize("key", ["", "abc", "../" + "a" * 61, "A" * 64])
def test_group_path_of_what_is_no_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a cache key"):
        CacheReader.from_key(tmp_path, key)
    with pytest.raises(CacheNotFound):
        CacheReader.from_key(tmp_path, "a" * 64)
    assert os.listdir(tmp_path) == []
