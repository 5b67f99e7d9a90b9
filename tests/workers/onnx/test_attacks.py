"""The attacks of ``tests.support.attacks``, against the check and over HTTP: each is a refusal, and the service serves
on.

``python -m tests.benchmarks.attacks`` sends every one of them over HTTP; here it is one of each kind.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks import attacks, fuzz_onnx
from tests.support.attacks import ATTACKS, BODIES
from tests.support.service_helpers import Api, make_settings, running_api
from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher
from workers.onnx.checks import check
from workers.onnx.checks.check import check_onnx
from workers.onnx.checks.teacher_graph import TeacherGraph
from workers.onnx.sessions import smoke_test
from workers.onnx.uploads.packing import is_archive, pack

OVER_HTTP = (
    "external data at ../x",
    "external data in a hard link beside it",
    "external data in a symbolic link beside it",
    "ConstantOfShape of 64 GiB",
    "Loop of 2^62 turns",
    "a sparse constant of 4 TiB",
    "2,000 graphs in one another",
    "ai.onnx.contrib PyOp",
    "a program",
    "cut off at 50%",
)


def check_upload(path: Path) -> None:
    """What an upload goes through until its teacher is run: an archive is made one file, and that is checked."""
    if is_archive(path):
        pack(path, None, None, path, bytes_max=64 << 20, timeout_s=60)
    check_onnx(path)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if not attack.runs])
def test_attack_is_refused_by_the_check(name: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(ATTACKS[name].build())
    with pytest.raises(InvalidTeacher, match=ATTACKS[name].says):
        check_upload(path)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.runs])
def test_attack_that_only_running_shows_is_well_formed(name: str, tmp_path: Path) -> None:
    """Else the tests of the smoke run would show nothing."""
    path = tmp_path / "teacher.onnx"
    path.write_bytes(ATTACKS[name].build())
    check_onnx(path)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service in which a teacher has two seconds to run, and a child as long to begin as a busy machine takes."""
    settings = make_settings(tmp_path_factory.mktemp("attacks"), teacher_max_bytes=24 << 20)
    run = smoke_test.smoke_run

    def run_shortly(path: Path, graph: TeacherGraph, preprocessing: Preprocessing, *, timeout_s: float) -> bool:
        assert timeout_s == settings.inspect_timeout_s
        return run(path, graph, preprocessing, timeout_s=2.0)

    with pytest.MonkeyPatch.context() as patch, running_api(settings) as running:
        patch.setattr(smoke_test, "smoke_run", run_shortly)
        patch.setattr(smoke_test, "GRACE_S", 100.0)
        attacks.plant_links(running)
        yield running


@pytest.mark.parametrize("name", OVER_HTTP)
def test_attack_over_http_is_a_problem_and_nothing_more(api: Api, name: str) -> None:
    response = attacks.upload(api, ATTACKS[name].build())
    assert (response.status_code, response.json()["type"]) == (422, "urn:retort:problem:invalid-teacher")
    assert re.search(ATTACKS[name].says, response.json()["detail"])
    assert api.client.get("/healthz").status_code == 200
    assert sorted(path.name for path in api.settings.teachers_dir.iterdir()) == ["hardlink", "symlink"]


@pytest.mark.parametrize("name", BODIES)
def test_attack_by_a_hostile_body_is_a_problem_and_nothing_more(api: Api, name: str) -> None:
    body = BODIES[name]
    response = api.client.post("/v1/teachers", content=body.chunks(), headers=attacks.BOUNDARY, timeout=200)
    assert (response.status_code, response.json()["type"]) == (body.status, f"urn:retort:problem:{body.slug}")
    assert api.client.get("/healthz").status_code == 200
    assert sorted(path.name for path in api.settings.teachers_dir.iterdir()) == ["hardlink", "symlink"]


def test_attacks_leave_a_service_that_takes_a_good_teacher(api: Api) -> None:
    """The last test of the file: it relies on those before."""
    assert attacks.survived(api, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_attacks_over_http_are_all_answered_as_they_should_be() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.attacks"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------------------------------------- fuzzing


def test_check_stands_a_few_seconds_of_mutants(tmp_path: Path) -> None:
    """In a process of its own, for a crash of a native library would be a finding, too."""
    command = [sys.executable, "-m", "tests.benchmarks.fuzz_onnx", "--seconds=3", "--without-atheris"]
    done = subprocess.run([*command, f"--findings={tmp_path}"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    # Both ends are reached, else the mutations would be too weak or too strong to say anything.
    assert counts["accepted"] > 20
    assert counts["refused"] > 20


def test_fuzzer_counts_and_keeps_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(path: Path, **_: object) -> None:
        raise KeyError(path.name)

    monkeypatch.setattr(check, "check_onnx", mistaken)
    fuzzer = fuzz_onnx.Fuzzer(tmp_path)
    fuzzer.try_one(b"a")
    fuzzer.try_one(b"b")
    assert fuzzer.counts == {"executions": 2, "findings": 2}
    assert fuzzer.raised == {"KeyError in mistaken": "'current.onnx'"}
    assert (tmp_path / "1.onnx").read_bytes() == b"a"
