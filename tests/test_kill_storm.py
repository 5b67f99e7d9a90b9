"""Fifty kills, of everything, over jobs of six runs: the program of the benchmarks asserts what has to hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_job_survives_fifty_kills_with_the_weights_of_a_quiet_one() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.kill_storm", "--kills", "50", "--epochs", "150", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-2].startswith("50 SIGKILLs, ")
    assert "runs succeeded once each" in done.stdout
