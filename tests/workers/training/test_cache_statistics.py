"""Statistics over the whole cache in a run: read from the files, the same after a resume and in a group, and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.digits import SMALL, Digits, weights
from tests.workers.training.test_loop import stop_after
from workers.errors import Paused, Stopped, WorkerError
from workers.events import Epoch, Log, ignore, never
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import ClassConfidence
from workers.teacher.cache_statistics import kept_path, read_cache_statistics
from workers.training.loop import train_group, train_run
from workers.training.run_handle import RunHandle

pytestmark = pytest.mark.usefixtures("without_onnx")
LUD = [CacheStatistic("class_confidence", 4.0), CacheStatistic("confident_classes", 4.0)]


def test_read_cache_statistics_are_of_every_view_of_the_cache(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    with digits.train_reader() as reader:
        logits_RC = np.concatenate([reader.logits(view) for view in range(reader.spec.views)]).astype(np.float64)
        found = read_cache_statistics(reader, LUD)
        monkeypatch.setattr("workers.teacher.cache_statistics._CELLS", 1000)
        kept_path(reader, LUD[0]).unlink()
        np.testing.assert_allclose(read_cache_statistics(reader, LUD)[LUD[0]], found[LUD[0]], rtol=1e-6)
        assert read_cache_statistics(reader, ()) == {}
    p_RC = np.exp(logits_RC / 4.0) / np.exp(logits_RC / 4.0).sum(axis=1, keepdims=True)
    said_R = logits_RC.argmax(axis=1)
    expected_C = [p_RC[said_R == c].max(axis=1).mean() for c in range(10)]
    np.testing.assert_allclose(found[LUD[0]], expected_C, rtol=1e-5)
    assert len(found[LUD[1]]) == 5


def test_cache_statistics_are_kept_with_the_run_and_are_the_same_after_a_resume(digits: Digits, tmp_path: Path) -> None:
    events: list[object] = []
    train_run(digits.order("lud", tmp_path / "quiet"), events.append, never)
    said = [event.message for event in events if isinstance(event, Log)]
    assert "read over the whole cache, once: class_confidence(temperature=4), confident_classes(temperature=4)" in said
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped):
        train_run(digits.order("lud", tmp_path / "a1"), emit, should_stop)
    train_run(digits.order("lud", tmp_path / "a2", earlier=(tmp_path / "a1",)), ignore, never)
    expected, resumed = weights(tmp_path / "quiet"), weights(tmp_path / "a2")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    with digits.train_reader() as reader:
        found = read_cache_statistics(reader, LUD)
    for folder in ("quiet", "a2"):
        config = json.loads((tmp_path / folder / "artifacts/config.json").read_text())
        assert config["cache_statistics"] == {str(each): found[each].tolist() for each in LUD}
        assert config["method"]["terms"][0]["loss"]["confidence"] == "cache"


def test_cache_statistics_of_a_group_are_those_of_its_runs_apart(digits: Digits, tmp_path: Path) -> None:
    policy = {"kind": "expression", "temperature": "clip(4 * std / std_mean, 1, 9)"}
    methods = ("lud", {"preset": "custom", "terms": [{"policy": policy}]}, "kd")
    apart = [digits.order(method, tmp_path / f"apart{number}") for number, method in enumerate(methods)]
    for task in apart:
        train_run(task, ignore, never)
    orders = [digits.order(method, tmp_path / f"group{number}") for number, method in enumerate(methods)]
    together = [
        order.model_copy(update={"run": order.run.model_copy(update={"index": place})})
        for place, order in enumerate(orders)
    ]
    ended = dict(train_group([RunHandle(task, ignore, never) for task in together]))
    assert not [how for how in ended.values() if isinstance(how, Exception)]
    for one, other in zip(apart, together, strict=True):
        expected, found = weights(one.folder), weights(other.folder)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    configs = [json.loads((task.folder / "artifacts/config.json").read_text()) for task in together]
    # Each keeps what its own method reads.
    assert [sorted(config.get("cache_statistics", {})) for config in configs] == [[*map(str, LUD)], ["std_mean"], []]


def test_cache_statistics_of_samples_are_those_of_the_batchs_rows(digits: Digits, tmp_path: Path) -> None:
    policy = {"kind": "expression", "temperature": "1 + abs(sample_max - max)"}
    task = digits.order({"preset": "custom", "terms": [{"policy": policy}]}, tmp_path)
    events: list[object] = []
    train_run(task, events.append, never)
    tops_VN = np.stack([digits.train_reader().statistics(view)["max"] for view in range(digits.views.count)])
    expected_VN = 1 + np.abs(tops_VN.mean(axis=0) - tops_VN)
    for epoch in (event for event in events if isinstance(event, Epoch)):
        expected_N = expected_VN[epoch.epoch - 1]
        assert epoch.metrics["teacher_temperature_mean"] == pytest.approx(float(expected_N.mean()), rel=1e-5)
        assert epoch.metrics["teacher_temperature_std"] == pytest.approx(float(expected_N.std()), rel=1e-3)
    kept = json.loads((tmp_path / "artifacts/config.json").read_text())["cache_statistics"]["sample_max"]
    assert kept["samples"] == len(digits.train.labels_N)


def test_training_warns_of_a_method_that_begins_with_tens_of_times_cross_entropy(
    digits: Digits, tmp_path: Path
) -> None:
    warned: dict[object, list[str]] = {}
    training = SMALL.model_copy(update={"epochs": 1})
    for method in ({"preset": "kd"}, {"preset": "normkd", "kd_weight": 9}):
        events: list[object] = []
        train_run(digits.order(method, tmp_path / str(method["preset"]), training), events.append, never)
        logs = [event for event in events if isinstance(event, Log) and event.level == "warning"]
        warned[method["preset"]] = [log.message for log in logs if "begins with a gradient of about" in log.message]
    assert warned["kd"] == []
    assert len(warned["normkd"]) == 1


def test_cache_statistics_are_told_of_the_run_that_reads_them_alone(digits: Digits, tmp_path: Path) -> None:
    """Not of others that are trained in its process."""
    told: dict[str, list[object]] = {"kd": [], "lud": []}
    handles = [
        RunHandle(digits.order(method, tmp_path / method).model_copy(update={"stage": "train"}), events.append, never)
        for method, events in told.items()
    ]
    assert all(not isinstance(how, Exception) for _, how in train_group(handles))
    reads = {
        method: any(isinstance(event, Log) and "over the whole cache" in event.message for event in events)
        for method, events in told.items()
    }
    assert reads == {"kd": False, "lud": True}


def test_statistics_over_logits_are_kept_beside_the_cache_until_they_are_damaged(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    with digits.train_reader() as reader:
        found = read_cache_statistics(reader, LUD)
        text = kept_path(reader, LUD[0]).read_text()
        with monkeypatch.context() as patch:
            patch.setattr(ClassConfidence, "add", None)
            again = read_cache_statistics(reader, LUD)
            assert all(np.array_equal(again[each], found[each]) for each in LUD)
            # Another temperature is another file.
            with pytest.raises(TypeError):
                read_cache_statistics(reader, [CacheStatistic("confident_classes", 2.0)])
        of_other_chunks = text.replace(reader.commits_sha256, "0" * 64)
        assert of_other_chunks != text
        for damaged in ("{", "{}", text.replace("0.", "0.1", 1), of_other_chunks):
            kept_path(reader, LUD[0]).write_text(damaged)
            assert np.array_equal(read_cache_statistics(reader, LUD)[LUD[0]], found[LUD[0]])
            assert kept_path(reader, LUD[0]).read_text() == text, damaged


@pytest.mark.parametrize(("signals", "expected"), [("SS", Stopped), ("PS", Paused), ("S-", None)])
def test_reading_a_whole_cache_is_ended_once_all_runs_of_the_group_are_to_end(
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: str,
    expected: type[WorkerError] | None,
) -> None:
    """It takes minutes for a large cache; where a run is to go on it has to be read."""
    monkeypatch.setattr("workers.teacher.cache_statistics._CELLS", 1000)
    pieces: list[int] = []
    add = ClassConfidence.add

    def count(self: ClassConfidence, logits_rC: np.ndarray) -> None:
        pieces.append(len(logits_rC))
        add(self, logits_rC)

    monkeypatch.setattr(ClassConfidence, "add", count)
    with digits.train_reader() as reader:
        kept_path(reader, LUD[0]).unlink(missing_ok=True)
    orders = [digits.order("lud", tmp_path / str(place)) for place in range(len(signals))]
    handles = [
        RunHandle(
            order.model_copy(update={"run": order.run.model_copy(update={"index": place})}),
            ignore,
            should_stop=lambda signal=signal: signal == "S" and len(pieces) >= 2,
            should_pause=lambda signal=signal: signal == "P" and len(pieces) >= 2,
        )
        for place, (order, signal) in enumerate(zip(orders, signals, strict=True))
    ]
    if expected is None:
        place, how = next(iter(train_group(handles)))
        assert (place, type(how)) == (0, Stopped)
        assert sum(pieces) == digits.train.samples * digits.views.count
        return
    with pytest.raises(expected, match="while statistics over the whole cache were read"):
        list(train_group(handles))
    assert len(pieces) == 2
