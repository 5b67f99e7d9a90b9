"""Rows outside the domain of a method's temperatures: a metric of every epoch, and one warning in a run."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.digits import SMALL, Digits
from tests.workers.training.test_loop import stop_after
from workers.errors import Stopped
from workers.events import Epoch, Log, never
from workers.training.loop import train_run

pytestmark = pytest.mark.usefixtures("without_onnx")
TRAINING = SMALL.model_copy(update={"epochs": 3})


def _clipped(digits: Digits, share: float) -> tuple[dict[str, object], list[float]]:
    """A method of which about that share of the rows is clipped, and the exact shares of both views."""
    tops = [digits.train_reader().statistics(view)["max"] for view in range(digits.views.count)]
    limit = float(np.quantile(np.concatenate(tops), share))
    policy = {"kind": "expression", "temperature": f"clip(max, {limit}, 1000)"}
    return {"preset": "custom", "terms": [{"policy": policy}]}, [float((top < limit).mean()) for top in tops]


def _outside(events: list[object]) -> list[float | None]:
    return [event.metrics["outside_domain"] for event in events if isinstance(event, Epoch)]


def _warnings(events: list[object]) -> list[str]:
    logs = [event for event in events if isinstance(event, Log)]
    return [log.message for log in logs if log.level == "warning" and "outside the domain" in log.message]


def test_domain_metric_is_the_share_of_the_epochs_rows_and_is_warned_of_once(digits: Digits, tmp_path: Path) -> None:
    method, shares = _clipped(digits, 0.2)
    events: list[object] = []
    train_run(digits.order(method, tmp_path, TRAINING), events.append, never)
    # Epoch 3 shows the first view again.
    assert _outside(events) == pytest.approx([shares[0], shares[1], shares[0]], abs=1e-6)
    [warning] = _warnings(events)
    assert "method 'custom'" in warning
    assert f"{shares[0]:.1%} of the rows of epoch 1" in warning
    assert "domain of policy 'expression': rows of which no clip" in warning
    lines = (tmp_path / "artifacts/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["outside_domain"] for line in lines] == _outside(events)


def test_domain_warning_is_not_repeated_by_a_run_that_was_resumed(digits: Digits, tmp_path: Path) -> None:
    method, shares = _clipped(digits, 0.2)
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped):
        train_run(digits.order(method, tmp_path / "a1", TRAINING), emit, should_stop)
    events: list[object] = []
    task = digits.order(method, tmp_path / "a2", TRAINING, earlier=(tmp_path / "a1",))
    train_run(task.model_copy(update={"told_epoch": 1}), events.append, never)
    assert _outside(events) == pytest.approx([shares[1], shares[0]], abs=1e-6)
    assert _warnings(events) == []


def test_domain_warning_is_not_given_for_a_few_rows(digits: Digits, tmp_path: Path) -> None:
    method, _ = _clipped(digits, 0.004)
    events: list[object] = []
    train_run(digits.order(method, tmp_path, SMALL), events.append, never)
    assert all(share is not None and 0.0 < share <= 0.01 for share in _outside(events))
    assert _warnings(events) == []


@pytest.mark.parametrize(("method", "has_domain"), [("kd", False), ("dtkd", True), ("ce", False)])
def test_domain_metric_is_of_methods_that_have_one(
    method: str, has_domain: bool, digits: Digits, tmp_path: Path
) -> None:
    events: list[object] = []
    train_run(digits.order(method, tmp_path, SMALL.model_copy(update={"epochs": 1})), events.append, never)
    [epoch] = [event for event in events if isinstance(event, Epoch)]
    assert ("outside_domain" in epoch.metrics) is has_domain
