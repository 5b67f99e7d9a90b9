"""``retort demo`` as it is typed: it says what it has to, and leaves no process behind."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from service.cli.processes.demo_run import METHODS, SECOND_METHODS
from service.cli.processes.supervisor import command, free_port
from tests.service.cli.test_supervisor import none_left
from tests.support.process_table import processes_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def demo(folder: Path) -> "subprocess.Popen[str]":
    # A service that is running on this machine is none of our business.
    line = command("--url", f"http://127.0.0.1:{free_port()}", "demo", "--data-dir", str(folder))
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_demo_shows_that_distillation_helps_and_its_second_job_runs_no_teacher(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as process:
        assert process.stdout is not None
        text = process.stdout.read()
    assert process.returncode == 0, text
    first, second = re.findall(r"([\d,]+) teacher forward passes used, ([\d,]+) avoided", text)
    # 20 views of 200 training digits, half of them held out, and 355 test digits, and the slices that the teacher is
    # tried on first: of the pictures as they are, and of 200 views.
    needed = 20 * 200 + 100 + 355
    assert needed + 200 < int(first[0].replace(",", "")) < needed + 200 + 1000
    assert second[0] == "0"
    for student, methods in (("cnn_s", METHODS), ("resnet8", SECOND_METHODS)):
        table = re.findall(rf"^{student} +(\w+) +([\d.]+) ± ([\d.]+) %", text, re.MULTILINE)
        accuracy = {method: (float(mean), float(deviation)) for method, mean, deviation in table}
        assert accuracy.keys() == set(methods), text
        # One temperature mends what z-scored logits leave of the students' probabilities.
        normkd = rf"^{student} +normkd .*? % +[\d.]+ ± [\d.]+ % +([\d.]+) ± [\d.]+ % +([\d.]+) ± [\d.]+ %"
        [(ece, fitted)] = re.findall(normkd, text, re.MULTILINE)
        assert 0 < 2 * float(fitted) < float(ece), text
        # What a newcomer sees first: distillation helps, by more than the seeds do.
        (labels, noise), (distilled, other_noise) = accuracy["ce"], accuracy["kd"]
        assert distilled - labels > noise + other_noise, text
    assert none_left(str(tmp_path / "data"))


def test_demo_ends_the_service_that_it_had_started_at_ctrl_c(tmp_path: Path) -> None:
    marker = str(tmp_path / "data")
    with demo(tmp_path / "data") as process:
        assert process.stdout is not None
        while "A teacher" not in process.stdout.readline():
            pass
        assert processes_with(marker)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert none_left(marker), processes_with(marker)
