"""Fifty kills, of everything, over jobs of six runs: the program of the benchmarks asserts what has to hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.kill_storm import Progress, finished_epochs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_job_survives_fifty_kills_with_the_weights_of_a_quiet_one() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.kill_storm", "--kills", "50", "--epochs", "150", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-2].startswith("50 SIGKILLs, ")
    assert "runs succeeded once each" in done.stdout


def told(kind: str, run_id: str, **data: object) -> dict[str, Any]:
    return {"type": kind, "run_id": run_id, "data": data}


def test_storm_takes_a_kill_for_got_over_when_every_run_in_training_has_told_of_an_epoch_from_after_it(
    tmp_path: Path,
) -> None:
    progress = Progress()
    for run_id in ("one", "two", "three"):
        progress.hear(told("state", run_id, state="running"))
    progress.hear(told("state", "three", state="lost"))
    assert progress.in_training() == ["one", "two"]
    log = tmp_path / "a1" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"event": "attempt begins"}\n{"event": "epoch", "epoch": 3}\n{"event": "epo')
    before = {"one": finished_epochs(tmp_path), "two": 1}
    assert before == {"one": 3, "two": 1}
    progress.hear(told("step", "one", epoch=4, step=1))
    progress.hear(told("epoch", "two", epoch=2))
    # It was finished when the kill fell, and told only now.
    progress.hear(told("epoch", "one", epoch=3))
    assert not progress.wait_beyond(before, 0.0)
    progress.hear(told("epoch", "one", epoch=4))
    assert progress.wait_beyond(before, 0.0)
    assert progress.wait_beyond({}, 0.0)
    progress.hear(told("state", "two", state="succeeded"))
    assert progress.wait_beyond({"two": 9}, 0.0)
