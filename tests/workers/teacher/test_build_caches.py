"""Missing blocks as a driver meets them: in order, held while they are with it, and not again once committed."""

import pytest

from store import StoreError
from tests.support.digits import Digits
from workers.config.task import Folders
from workers.errors import Stopped
from workers.events import CacheReady, ignore, never
from workers.teacher.build_caches import missing_blocks
from workers.teacher.cache_plan import CachePlan
from workers.teacher.inference import infer_here
from workers.teacher.plan_caches import plan_caches

VIEWS = 5


@pytest.fixture(scope="module")
def planned(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[CachePlan, Folders]:
    """A plan of caches of which no block is committed; the training split's has one for each view."""
    root = tmp_path_factory.mktemp("missing")
    folders = Folders(data_dir=root, data_root=root)
    job = digits.job("kd").model_copy(update={"views": digits.views.model_copy(update={"count": VIEWS})})
    return plan_caches(job, folders, ignore, never, threads=1, device="cpu"), folders


def test_missing_blocks_that_nobody_commits_finish_no_cache(planned: tuple[CachePlan, Folders]) -> None:
    plan, folders = planned
    found = missing_blocks(plan, folders, ignore, never, threads=1)
    assert next(found).task.spec == plan.test_cache
    with pytest.raises(StoreError, match="block"):
        next(found)


def test_missing_blocks_are_held_while_they_are_out_and_come_again_unless_committed(
    planned: tuple[CachePlan, Folders],
) -> None:
    plan, folders = planned
    found = missing_blocks(plan, folders, ignore, never, threads=1, device="cpu")
    test = next(found)
    assert (test.task.spec, list(test.blocks)) == (plan.test_cache, [0])
    infer_here(test.task, test.blocks, ignore, never)
    train = next(found)
    assert (train.task.spec, list(train.blocks)) == (plan.train_cache, list(range(VIEWS)))
    infer_here(train.task, train.blocks[:2], ignore, never)
    with pytest.raises(Stopped, match="infers the same cache"):
        next(missing_blocks(plan, folders, ignore, lambda: True, threads=1))
    found.close()

    # As after a kill: the next driver has the rest to do, and no teacher for what is complete.
    events: list[object] = []
    rows = 0
    for missing in missing_blocks(plan, folders, events.append, never, threads=1, device="cpu"):
        assert (missing.task.spec, list(missing.blocks)) == (plan.train_cache, [2, 3, 4])
        infer_here(missing.task, missing.blocks, events.append, never)
        rows += missing.rows
    assert rows == 3 * plan.train_cache.samples
    ready = [(event.split, event.rows_inferred) for event in events if isinstance(event, CacheReady)]
    assert ready == [("test", 0), ("train", rows)]
    assert not list(missing_blocks(plan, folders, ignore, never, threads=1))
