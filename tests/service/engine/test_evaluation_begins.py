"""An evaluation begins whatever its training options say of processes: it trains nothing."""

from pathlib import Path

from service.db.states import State
from tests.service.engine.test_scheduler import _Bench, _Task


def test_an_evaluation_is_not_refused_for_actors_that_it_never_starts(tmp_path: Path) -> None:
    plan = {"evaluate": True, "students": [], "methods": [], "training": {"epochs": 1, "actors": 64}}
    bench = _Bench(tmp_path, **plan)
    try:
        engine = bench.engine(_Task())
        engine.tick()
        assert bench.state is State.RUNNING, bench.queries.job(bench.job_id).error
    finally:
        bench.gpus.close()
        bench.database.close()
