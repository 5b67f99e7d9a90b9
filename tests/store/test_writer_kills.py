"""Writers that are killed without pause leave the cache that one writer makes in peace: the same files, byte for byte.

Only the time of creation differs, which tree() leaves out: it is that of whoever created the cache.
"""

import random
import shutil
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from store import CacheReader, CacheSpec, Catalog
from tests.support.store_cases import children, make_spec, tree, write_all, write_cache

WRITERS = 3


def storm(root: Path, spec: CacheSpec, moments: random.Random) -> tuple[int, int]:
    """Several writers of one cache, killed at random moments and started again until it is finished.

    Returns how many were killed, and how often all of them lay dead with a block half written.
    """
    context = children()
    group = root / spec.key
    kills = torn = 0
    committed: set[Path] = set()
    alive: list[BaseProcess] = []
    while True:
        while len(alive) < WRITERS:
            order = 1 if len(alive) % 2 else -1
            alive.append(context.Process(target=write_all, args=(root, spec, order, None, None)))
            alive[-1].start()
        finished = connection.wait([writer.sentinel for writer in alive], timeout=moments.uniform(0, 0.25))
        if finished:
            break
        doomed = moments.sample(alive, moments.randint(1, WRITERS))
        for writer in doomed:
            writer.kill()
        for writer in doomed:
            writer.join()
            alive.remove(writer)
        kills += len(doomed)
        now = set((group / "commits").glob("*.json"))
        assert committed <= now
        committed = now
        if not alive:
            chunks = [path for path in group.glob("*/c/**/*") if path.is_file()]
            torn += len(chunks) != 6 * len(now) or bool(list(group.rglob("*.partial")))
    for writer in alive:
        writer.join()
        assert writer.exitcode == 0
    return kills, torn


@pytest.mark.parametrize(
    ("kills", "views"),
    [(15, 4), pytest.param(120, 24, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_writer_in_a_storm_of_kills_leaves_the_cache_that_is_written_in_peace(
    tmp_path: Path, kills: int, views: int
) -> None:
    spec = make_spec(samples=4096 * 7 + 5, classes=2, views=views)
    peaceful = tree(write_cache(tmp_path / "peace", spec).path)
    root, moments = tmp_path / "storm", random.Random(3)
    killed = torn = 0
    while killed < kills or torn == 0:  # a fast machine finishes a cache in fewer
        shutil.rmtree(root, ignore_errors=True)
        more, more_torn = storm(root, spec, moments)
        killed, torn = killed + more, torn + more_torn
        assert tree(root / spec.key) == peaceful
        # What a killed creation leaves is swept when an hour has passed.
        assert all(path.name.startswith(".creating-") for path in root.iterdir() if path.name != spec.key)
        assert Catalog(root).verify(spec.key).ok
        CacheReader(root, spec).close()
