"""Groups of runs on one GPU: what sees fresh views is trained apart from what sees the cached ones."""

from pathlib import Path

from tests.service.engine.test_scheduler import _Bench, _Cluster, complete_caches


def test_scheduler_starts_runs_with_fresh_views_in_a_process_of_their_own(tmp_path: Path) -> None:
    views = {"augmentation": {"recipe": "crop_flip", "pad": 1}, "count": 2, "fresh": True}
    bench = _Bench(tmp_path, methods=["kd", "ce", "rld"], views=views)
    cluster = _Cluster(complete_caches())
    engine = bench.engine_on(cluster, run_cpus=1)
    for _ in range(4):
        engine.tick()
    started = [[(task.run.method.label, task.views.fresh) for task in tasks] for tasks, _ in cluster.trained]
    assert started == [[("kd", None), ("rld", None)], [("ce", True)]]
    bench.gpus.close()
    bench.database.close()
