"""How fast cached logits are read: ``python -m tests.benchmarks.reading [--json FILE] [--quick] [--parts ...]``.

The same logits (float16) lie in a cache, in one flat file and in plain Zarr arrays of several chunk shapes. Batches are
256 rows of a shuffled epoch.

- shuffled: everything is in memory. Zarr is tuned first: chunk rows, way of indexing, concurrency. How a file came to
  memory decides which pages it has there, so the memmap is met in three states: as written, its best, for one large
  file gets the largest pages; after the page cache was dropped and each contender has read an epoch through its own
  mapping; and after read(2), which leaves the store's short files in small pages (see store/chunk_map.py).
- load: a whole view into a new array. The store compares every checksum, and so does Zarr, on the same files.
- cold: the page cache of the files is dropped before each trial. The first 40 batches, where every batch is like the
  first, and a whole epoch, in which everything comes to memory. ``prefetch`` is to be the faster way in both; with a
  reader that ``exceeds_memory`` (it is only told so here) it goes on for the whole epoch as for the first batches.
- memory: the sum of PSS of four processes that have each read every row, over the bytes of the logits.

The files go to the folder of temporary files (TMPDIR), which must be on a disk: 7 GB. With --quick no bar is judged.
Each part takes a minute or less; ``--parts`` chooses some of them, by what is measured and the number of classes.

Shapes: N samples, C classes, B = 256 rows of a batch.
"""

import gc
import itertools
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec

from store import CacheReader, CacheSpec, CacheWriter
from tests.benchmarks.bench import Timing, interleaved, options, show, write
from tests.support.store_cases import make_spec

BATCH = 256
AHEAD = 4  # batches, as RowMap.prefetch advises
REPEAT = 50  # batches per timed call where one takes microseconds
COLD_BATCHES = 40
READERS = 4

Logits = npt.NDArray[np.float16]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        figure: in the table's unit.
        ratio: times the store's figure, or what the table says.
        least, most: the bar for the ratio, if there is one.
    """

    contender: str
    figure: float
    ratio: float
    least: float | None = None
    most: float | None = None

    @property
    def bar(self) -> str:
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"<= {self.most:g}"

    @property
    def met(self) -> bool | None:
        if self.least is not None:
            return self.ratio >= self.least
        return None if self.most is None else self.ratio <= self.most


@dataclass(frozen=True)
class Table:
    """What was measured side by side."""

    title: str
    unit: str
    ratio: str
    rows: list[Row]


@dataclass(frozen=True)
class Case:
    """The same logits [N, C] as a cache and as one flat file."""

    folder: Path
    spec: CacheSpec
    order_N: Order

    @property
    def name(self) -> str:
        return f"{self.spec.samples} rows of {self.spec.classes} float16"

    @property
    def flat(self) -> Path:
        return self.folder / "flat"

    @property
    def files(self) -> list[Path]:
        return [self.flat, *sorted((self.folder / self.spec.key / "logits" / "c").glob("*/*/0"))]

    def reader(self) -> CacheReader:
        return CacheReader(self.folder, self.spec)

    def memmap(self) -> np.memmap:
        return np.memmap(self.flat, np.float16, "r", shape=(self.spec.samples, self.spec.classes))

    def batches(self) -> Iterator[Order]:
        """The batches of epoch after epoch, without the short last one."""
        for start in itertools.cycle(range(0, self.spec.samples - BATCH + 1, BATCH)):
            yield self.order_N[start : start + BATCH]


def make_case(folder: Path, samples: int, classes: int) -> Case:
    """Write the cache and the flat file."""
    spec = make_spec(samples=samples, classes=classes)
    generator = np.random.default_rng(0)
    some = generator.normal(0, 1.5, (spec.block_rows, classes)).astype(np.float32)
    writer = CacheWriter(folder, spec)
    for block in writer.pending_blocks():
        _, start, stop = spec.block_range(block)
        writer.write_block(block, np.roll(some, block, axis=0)[: stop - start])
    writer.finish()
    case = Case(folder, spec, generator.permutation(samples))
    with case.reader() as reader:
        reader.logits(0).tofile(case.flat)
    return case


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache; nobody may have touched a mapping of them that is still there."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(paths: Sequence[Path]) -> None:
    """Read files from start to end, from the disk."""
    drop(paths)
    buffer = bytearray(8 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# ------------------------------------------------------------------------------------------------------------- shuffled


def plain_zarr(path: Path, flat: Logits, chunk_rows: int) -> zarr.Array:
    """The logits as an array without a compressor or a checksum, of chunks that hold whole rows."""
    array = zarr.create_array(
        path,
        shape=flat.shape,
        chunks=(chunk_rows, flat.shape[1]),
        dtype=flat.dtype,
        serializer=BytesCodec(endian="little"),
        compressors=None,
        filters=None,
    )
    array[:] = flat
    return array


def by_oindex(array: zarr.Array, rows_B: Order) -> Logits:
    return array.oindex[rows_B]


def by_sorted_oindex(array: zarr.Array, rows_B: Order) -> Logits:
    order_B = np.argsort(rows_B)
    batch = np.empty((len(rows_B), array.shape[1]), array.dtype)
    batch[order_B] = array.oindex[rows_B[order_B]]
    return batch


def by_blocks(array: zarr.Array, rows_B: Order) -> Logits:
    blocks_B = rows_B // array.chunks[0]
    batch = np.empty((len(rows_B), array.shape[1]), array.dtype)
    for block in np.unique(blocks_B):
        here_B = blocks_B == block
        batch[here_B] = array.blocks[int(block)][rows_B[here_B] % array.chunks[0]]
    return batch


INDEXING: dict[str, Callable[[zarr.Array, Order], Logits]] = {
    "oindex": by_oindex,
    "oindex of sorted rows": by_sorted_oindex,
    "blocks": by_blocks,
}


@dataclass(frozen=True)
class Tuned:
    """A way to read batches through zarr."""

    array: zarr.Array
    indexing: str
    concurrency: int  # zarr's "async.concurrency"

    @property
    def name(self) -> str:
        return f"zarr, chunks of {self.array.chunks[0]} rows, {self.indexing}, concurrency {self.concurrency}"

    def read(self, rows_B: Order) -> Logits:
        with zarr.config.set({"async.concurrency": self.concurrency}):
            return INDEXING[self.indexing](self.array, rows_B)


def time_tunings(case: Case, tunings: Sequence[Tuned], rounds: int) -> list[tuple[float, Tuned]]:
    """Seconds of a batch, the fastest first."""
    batches = case.batches()
    timings = interleaved({t.name: lambda t=t: t.read(next(batches)) for t in tunings}, rounds=rounds)
    return sorted(((timings[t.name].median_s, t) for t in tunings), key=lambda pair: pair[0])


def tune_zarr(case: Case, rounds: int) -> list[tuple[float, Tuned]]:
    """Chunk rows and indexing at zarr's default concurrency, then the concurrency of the two fastest."""
    samples, flat = case.spec.samples, case.memmap()
    whole = {samples} if flat.nbytes < 64 << 20 else set()
    chunk_rows = sorted({256, 1024, 4096, 16384} | whole)
    arrays = [plain_zarr(case.folder / f"plain-{rows}", flat, rows) for rows in chunk_rows]
    for rows in chunk_rows:
        warm([path for path in (case.folder / f"plain-{rows}").rglob("*") if path.is_file()])
    first = time_tunings(case, [Tuned(array, name, 10) for array in arrays for name in INDEXING], rounds)
    others = [Tuned(t.array, t.indexing, concurrency) for _, t in first[:2] for concurrency in (1, 4, 64)]
    return sorted(first + time_tunings(case, others, rounds), key=lambda pair: pair[0])


def many(read: Callable[[int], object], samples: int) -> Callable[[], None]:
    """Read REPEAT batches, given where each starts in the order, epoch after epoch."""
    starts = itertools.cycle(range(0, samples - BATCH + 1, BATCH))

    def call() -> None:
        for start in itertools.islice(starts, REPEAT):
            read(start)

    return call


def gathered(case: Case, others: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Times of REPEAT batches from the store and from a memmap, after an epoch that is not timed, and of others."""
    flat, samples = case.memmap(), case.spec.samples
    batch = np.empty((BATCH, case.spec.classes), np.float16)
    with case.reader() as reader:
        rows = reader.row_map(0, case.order_N)
        reads: dict[str, Callable[[int], object]] = {
            "RowMap.gather": lambda start: rows.gather(start, start + BATCH, batch),
            "CacheReader.gather": lambda start: reader.gather(0, case.order_N[start : start + BATCH], batch),
            "memmap": lambda start: np.take(flat, case.order_N[start : start + BATCH], axis=0, out=batch, mode="clip"),
        }
        for read in reads.values():
            for start in range(0, samples - BATCH + 1, BATCH):
                read(start)
        calls = {name: many(read, samples) for name, read in reads.items()}
        return interleaved({**calls, **others}, rounds=rounds, turn_s=0.02)


def shuffled(case: Case, quick: bool) -> Iterator[Table]:
    """Warm batches from the store, from a memmap and from zarr."""
    rounds = 5 if quick else 31
    # First of all: nothing else has asked for memory since the files were written.
    yield _against_memmap(f"Shuffled batches, {case.name}, warm, as written", gathered(case, {}, rounds))
    tried = tune_zarr(case, 2 if quick else 3)
    best = tried[0][1]
    # One way to read each other array: the fastest.
    others = {tuned.array.chunks: (seconds, tuned) for seconds, tuned in reversed(tried)}
    del others[best.array.chunks]
    batches = case.batches()
    drop(case.files)
    timings = gathered(case, {"zarr": lambda: best.read(next(batches))}, rounds)
    store_s = timings["RowMap.gather"].median_s / REPEAT
    yield _against_memmap(
        f"Shuffled batches, {case.name}, warm, the files read through mappings before",
        timings,
        _row(best.name, timings["zarr"].median_s, store_s, least=200),
        *(_row(way.name, seconds, store_s) for seconds, way in sorted(others.values(), key=lambda pair: pair[0])),
    )
    warm(case.files)
    title = f"Shuffled batches, {case.name}, warm, the files read with read(2) before"
    yield _against_memmap(title, gathered(case, {}, rounds))


def _against_memmap(title: str, timings: Mapping[str, Timing], *others: Row) -> Table:
    store_s, anew_s, memmap_s = (timings[name].median_s / REPEAT for name in list(timings)[:3])
    rows = [
        _row("store, RowMap.gather", store_s, store_s),
        _row("store, CacheReader.gather", anew_s, store_s),
        _row("np.take from one np.memmap", memmap_s, store_s, least=0.9),
    ]
    return Table(title, "us per batch", "/ store", [*rows, *others])


def _row(contender: str, seconds: float, store_s: float, least: float | None = None) -> Row:
    return Row(contender, 1e6 * seconds, seconds / store_s, least)


# ----------------------------------------------------------------------------------------------------------------- load


def load(case: Case, quick: bool) -> Iterator[Table]:
    """A whole view, verified, and the same arrays through zarr."""
    warm(case.files)
    array = zarr.open_array(case.folder / case.spec.key / "logits", mode="r")
    with case.reader() as reader:
        calls = {"store": lambda: reader.logits(0), "zarr": lambda: array[:]}
        timings = interleaved(calls, rounds=3 if quick else 15)
    store_s, zarr_s = timings["store"].median_s, timings["zarr"].median_s
    table = [
        Row("store, CacheReader.logits", 1e3 * store_s, 1.0),
        Row("zarr, z[:] of the same array", 1e3 * zarr_s, zarr_s / store_s, least=1.3),
    ]
    yield Table(f"Load {case.name}, checksums compared, warm", "ms", "/ store", table)


# ----------------------------------------------------------------------------------------------------------------- cold


def cold_memmap(case: Case, batches: int, advice: int | None = None) -> float:
    flat = case.memmap()
    if advice is not None:
        flat._mmap.madvise(advice)
    batch = np.empty((BATCH, case.spec.classes), np.float16)
    drop(case.files)
    started = time.perf_counter()
    for rows_B in itertools.islice(case.batches(), batches):
        np.take(flat, rows_B, axis=0, out=batch, mode="clip")
    return time.perf_counter() - started


def cold_store(case: Case, batches: int, ahead: int | None, exceeds_memory: bool = False) -> float:
    batch = np.empty((BATCH, case.spec.classes), np.float16)
    with case.reader() as reader:
        reader.exceeds_memory = exceeds_memory
        rows = reader.row_map(0, case.order_N)
        drop(case.files)
        started = time.perf_counter()
        for start in range(0, batches * BATCH, BATCH):
            if ahead is not None:
                rows.prefetch(start, start + (1 + ahead) * BATCH)
            rows.gather(start, start + BATCH, batch)
        return time.perf_counter() - started


def cold(case: Case, quick: bool) -> Iterator[Table]:
    """From the disk, the same order for all."""
    yield cold_batches(case, COLD_BATCHES, 2 if quick else 5, f"First {COLD_BATCHES} batches", 4.0)
    yield cold_batches(case, case.spec.samples // BATCH, 2 if quick else 5, "Whole epoch", 1.0)


def cold_batches(case: Case, batches: int, rounds: int, title: str, bar: float) -> Table:
    """The first batches of the order."""
    calls: dict[str, Callable[[], float]] = {
        f"store, prefetch {AHEAD} batches ahead": lambda: cold_store(case, batches, AHEAD),
        f"store, prefetch {AHEAD} batches ahead, beyond memory": lambda: cold_store(case, batches, AHEAD, True),
        "store": lambda: cold_store(case, batches, None),
        "one np.memmap": lambda: cold_memmap(case, batches),
        "one np.memmap, MADV_RANDOM": lambda: cold_memmap(case, batches, mmap.MADV_RANDOM),
    }
    timings = {name: Timing() for name in calls}
    shuffle, order = random.Random(0).shuffle, list(calls)
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            timings[name].seconds.append(calls[name]() / batches)
            gc.collect()  # or a forgotten mapping keeps its pages in memory
    fastest, *others = calls
    store_s = timings[fastest].median_s
    table = [Row(fastest, 1e6 * store_s, 1.0)]
    for name in others:
        seconds = timings[name].median_s
        table.append(_row(name, seconds, store_s, least=bar if name == "one np.memmap" else None))
    return Table(f"{title}, {case.name}, cold", "us per batch", "/ first", table)


# --------------------------------------------------------------------------------------------------------------- memory


def readers_pss_bytes(case: Case, kind: str) -> int:
    """PSS of four processes together, once all of them have read every row."""
    path = case.folder / case.spec.key if kind == "store" else case.flat
    shape = [str(case.spec.samples), str(case.spec.classes)]
    command = [sys.executable, "-m", "tests.benchmarks.reader_process", kind, str(path), *shape]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(READERS)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "read\n"
        total = 0
        for reader in readers:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("?\n")
            reader.stdin.flush()
            total += 1024 * int(reader.stdout.readline())
        return total


def memory(case: Case, quick: bool) -> Iterator[Table]:
    """Four readers at once, interpreters and libraries included."""
    copy_bytes = case.spec.samples * case.spec.row_bytes
    warm(case.files)
    names = {"store": "store", "memmap": "one np.memmap", "copy": "a copy in each process"}
    found: dict[str, list[int]] = {kind: [] for kind in names}
    for _ in range(1 if quick else 3):
        for kind in names:
            found[kind].append(readers_pss_bytes(case, kind))
    table = []
    for kind, name in names.items():
        total = median(found[kind])
        table.append(Row(name, total / 1e6, total / copy_bytes, most=1.3 if kind == "store" else None))
    yield Table(f"PSS of {READERS} readers, {case.name}", "MB", "/ one copy", table)


# ----------------------------------------------------------------------------------------------------------------- main


def as_json(table: Table) -> dict[str, object]:
    """The table's figures."""
    rows = [
        {"contender": row.contender, "figure": row.figure, "ratio": row.ratio, "bar": row.bar, "met": row.met}
        for row in table.rows
    ]
    return {"title": table.title, "unit": table.unit, "ratio": table.ratio, "rows": rows}


SAMPLES = {100: 50_000, 1000: 400_000}  # by classes
MEASURES: dict[str, Callable[[Case, bool], Iterator[Table]]] = {
    "shuffled": shuffled,
    "load": load,
    "cold": cold,
    "memory": memory,
}
# Of the small case only what fits in memory matters; --quick has nothing else.
PARTS = ("shuffled-100", "load-100", *(f"{name}-1000" for name in MEASURES))
QUICK_PARTS = tuple(f"{name}-100" for name in MEASURES)


def main() -> None:
    given = options("How fast cached logits are read, and in how much memory.", PARTS, QUICK_PARTS)
    quick, tables = given.quick, []

    def done(table: Table) -> None:
        tables.append(table)
        words = {True: "yes", False: "NO", None: ""}
        print(table.title)
        rows = [
            [row.contender, f"{row.figure:.1f}", f"{row.ratio:.2f}", row.bar, "" if quick else words[row.met]]
            for row in table.rows
        ]
        show(["contender", f"{table.unit}>", f"{table.ratio}>", "bar", "met"], rows)
        print(flush=True)

    for classes, samples in SAMPLES.items():
        chosen = [name for name in MEASURES if f"{name}-{classes}" in given.parts]
        if not chosen:
            continue
        with TemporaryDirectory(prefix="retort-reading-") as folder:
            case = make_case(Path(folder), samples, classes)
            for name in chosen:
                for table in MEASURES[name](case, quick):
                    done(table)
    write(given, {"benchmark": "reading", "quick": quick, "tables": [as_json(table) for table in tables]})


if __name__ == "__main__":
    main()
