"""Small caches for the tests of store/, and the child processes that write them.

The children run in processes forked from a clean server which has imported this module, so starting one
costs milliseconds and killing one kills nothing else.

Shapes: N samples, C classes.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import numpy.typing as npt

from store import CacheReader, CacheSpec, CacheWriter, Catalog, DiskFull, QuotaExceeded


def make_spec(**changes: object) -> CacheSpec:
    """A spec of three blocks, the last one short, with `changes`."""
    fields: dict[str, object] = {
        "teacher_sha256": "a1" * 32,
        "teacher_output": "logits",
        "output_kind": "logits",
        "dataset_fingerprint": "b2" * 32,
        "split": "train",
        "samples": 2 * 4096 + 100,
        "classes": 10,
        "preprocessing": {"mean": [0.5, 0.25, 0.125], "layout": "NCHW"},
        "augmentation": {"recipe": "none"},
        "augmentation_seed": 0,
        "views": 1,
        "dtype": "float16",
    }
    return CacheSpec.model_validate({**fields, **changes})


def make_logits(spec: CacheSpec, view: int = 0) -> npt.NDArray[np.float32]:
    """What the teacher of these tests says about every sample of a view: float32 [N, C]."""
    generator = np.random.default_rng([view, spec.classes])
    return generator.normal(0, 3, (spec.samples, spec.classes)).astype(np.float32)


def make_labels(spec: CacheSpec) -> npt.NDArray[np.int64]:
    """The true class of every sample, int64 [N]."""
    return np.random.default_rng(spec.samples).integers(0, spec.classes, spec.samples)


def write_blocks(writer: CacheWriter, blocks: Iterable[int]) -> None:
    """Write the true logits of some blocks."""
    logits = {view: make_logits(writer.spec, view) for view in range(writer.spec.views)}
    labels = make_labels(writer.spec)
    for block in blocks:
        view, start, stop = writer.spec.block_range(block)
        writer.write_block(block, logits[view][start:stop], labels[start:stop])


def write_cache(root: Path, spec: CacheSpec) -> CacheWriter:
    """A finished cache, written in peace."""
    writer = CacheWriter(root, spec, provenance={"device": "cpu"})
    write_blocks(writer, writer.pending_blocks())
    writer.finish()
    return writer


def tree(group: Path) -> dict[str, bytes]:
    """Every file of a cache by its relative name; the one thing that may differ, the time of creation, is cut out."""
    files = {str(path.relative_to(group)): path.read_bytes() for path in group.rglob("*") if path.is_file()}
    attributes = json.loads(files["zarr.json"])
    del attributes["attributes"]["retort"]["created_at"]
    return {**files, "zarr.json": json.dumps(attributes).encode()}


def digests(group: Path) -> dict[str, str]:
    """tree(), shorter."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in tree(group).items()}


def is_held(catalog: Catalog, key: str) -> bool:
    """Whether it is in use: among what stands in the way when everything has to go, which evicts nothing."""
    try:
        catalog.make_room(1, 0)
    except QuotaExceeded as error:
        _, in_use = str(error).split("bytes pinned")
        return key[:12] in in_use
    raise AssertionError("a quota of no byte had room for one")


def children() -> ForkServerContext:
    """Where to start processes that have this module loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def write_all(root: Path, spec: CacheSpec, order: int, start: Barrier | None, ready: Connection | None) -> None:
    """Child: create or open, write whatever is pending (backwards if order is -1), finish."""
    if start is not None:
        start.wait()
    writer = CacheWriter(root, spec, provenance={"device": "cpu"})
    if ready is not None:
        ready.send("opened")
    write_blocks(writer, writer.pending_blocks()[::order])
    writer.finish()


def create(root: Path, spec: CacheSpec, start: Barrier, created_at: Connection) -> None:
    """Child: only create, and tell what time of creation the cache bears."""
    start.wait()
    path = CacheWriter(root, spec).path
    created_at.send(json.loads((path / "zarr.json").read_text())["attributes"]["retort"]["created_at"])


def gather_in_little_address_space(root: Path, spec: CacheSpec, spare_bytes: int, answer: Connection) -> None:
    """Child: open and gather with only so much address space left; send how it was mapped and the rows."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + spare_bytes, resource.RLIM_INFINITY))
    reader = CacheReader(root, spec)
    rows = reader.row_map(0, np.arange(spec.samples)[::-7])
    rows.prefetch(0, 10)
    answer.send((reader._chunks.kind, rows.gather(0, len(rows))))


def fill_the_disk(root: Path, spec: CacheSpec, ballast: Path) -> dict[str, object]:
    """Write until the disk is full, look at what is left, make room, and carry on to the end."""
    writer = CacheWriter(root, spec, provenance={"device": "cpu"})
    report: dict[str, object] = {}
    try:
        write_blocks(writer, writer.pending_blocks())
    except DiskFull as error:
        report |= {"needed_bytes": error.needed_bytes, "free_bytes": error.free_bytes, "message": str(error)}
    pending = writer.pending_blocks()
    report["pending"] = pending
    report["partial"] = [path.name for path in writer.path.rglob("*.partial")]
    report["left_of_the_block"] = [str(p) for p in writer.path.glob(f"*/c/0/{pending[0]}*") if p.is_file()]
    ballast.unlink()
    write_blocks(writer, pending)
    writer.finish()
    report["files"] = digests(writer.path)
    return report


def crawl_on_a_full_disk(root: Path, spec: CacheSpec, ballast: Path) -> dict[str, object]:
    """From a disk without one free page to a finished cache, a page more at every refusal."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    refused_at = []
    strays: list[str] = []
    while True:
        try:
            writer = CacheWriter(root, spec, provenance={"device": "cpu"})
            write_blocks(writer, writer.pending_blocks())
            writer.finish()
        except DiskFull:
            group = root / spec.key
            refused_at.append(len(writer.pending_blocks()) if group.exists() else -1)
            records = len(list(group.glob("commits/*.json")))
            chunks = [path for path in group.glob("*/c/**/*") if path.is_file()]
            strays += [str(path) for path in root.rglob("*.partial")] + [str(p) for p in root.glob(".creating*")]
            strays += [str(path) for path in chunks if len(chunks) != 6 * records]
            os.truncate(ballast, ballast.stat().st_size - 4096)
        else:
            return {"refused_at": refused_at, "strays": strays, "files": digests(writer.path)}


if __name__ == "__main__":  # inside a mount namespace of its own, see test_store_writer.py
    folder = Path(sys.argv[1])
    ballast = folder / "ballast"
    ballast.write_bytes(os.urandom(1 << 20))
    scenario = {"fill": fill_the_disk, "crawl": crawl_on_a_full_disk}[sys.argv[2]]
    sys.stdout.write(json.dumps(scenario(folder / "caches", make_spec(samples=int(sys.argv[3])), ballast)))
