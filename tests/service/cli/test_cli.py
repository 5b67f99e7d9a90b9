"""The command line against the real API: what it prints, what it exits with, and that failures are one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.cli import main
from service.cli.processes.supervisor import command, free_port
from service.db.engine_queries import EngineQueries
from service.db.models import EngineRecord, utc_now
from service.db.states import State
from service.gpus import GpuReport
from store import CacheWriter
from tests.support.client_cases import ARTIFACT, artifact_path, run_with_artifact, tell_and_end
from tests.support.service_helpers import PREPROCESSING, Api, add_job, make_settings, onnx_bytes, running_api, start_run
from tests.support.store_cases import make_spec, write_cache
from workers.teacher.imports.imported_specs import imported_preprocessing

if TYPE_CHECKING:
    from tests.support.digits import Digits

pytest_plugins = ["tests.support.service_fixtures"]

ROOT = Path(__file__).resolve().parents[3]
Retort = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands set RETORT_* for their children; what one test sets, the next must not see."""
    for name in list(os.environ):
        if name.startswith("RETORT_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def retort(capsys: pytest.CaptureFixture[str]) -> Retort:
    """Runs a command line and returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def cli(api: Api, retort: Retort) -> Retort:
    """The same, for the service of this test."""
    return lambda *arguments: retort("--url", api.url, *arguments)


@pytest.fixture
def job_file(api: Api, tmp_path: Path) -> Callable[..., Path]:
    """Writes the JSON of a job that is accepted, with changes."""

    def write(**changes: object) -> Path:
        path = tmp_path / "job.json"
        path.write_text(json.dumps(api.job_body(**changes)))
        return path

    return write


def buffered() -> dict[str, str]:
    """An environment in which Python's streams are as they usually are: what is written waits for a flush."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def is_one_line(text: str) -> bool:
    return text.startswith("retort: ") and text.count("\n") == 1 and "Traceback" not in text


# -------------------------------------------------------------------------------------------------------- start-up


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "ray", "onnxruntime", "onnx", "fastapi", "sqlalchemy", "zarr", "numpy", "PIL")
    code = f"""
import sys
from service.cli import main
assert main(["submit", "--help"]) == 0
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["students"], ["--json", "students"], ["--json", "jobs"]])
def test_streams_without_a_reader_are_no_failure_to_report(api: Api, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        line = command("--url", api.url, *words)
        done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered())
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


# -------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["launch"], 2, "No such command 'launch'"),
        (["submit"], 2, "JOB.json"),
        (["submit", "nowhere.json"], 2, "nowhere.json"),
        (["jobs", "--limit", "many"], 2, "--limit"),
        (["jobs", "--limit", "0"], 2, "--limit"),
        (["show", "cnn_s"], 1, "job_..."),
        *(([verb, "cnn_s"], 1, "no id of a job (job_...) or run (run_...)") for verb in ("cancel", "pause", "retry")),
        (["--url", "localhost", "jobs"], 1, "is not a service address"),
        (["cache", "verify", "abcd", "--recompute", "8"], 2, "--data-dir"),
        (["cache", "--data-dir", "nowhere", "list"], 2, "nowhere"),
    ],
)
def test_command_line_that_makes_no_sense_is_refused_without_a_service(
    retort: Retort, arguments: list[str], status: int, says: str
) -> None:
    found, out, err = retort(*arguments)
    assert found == status
    assert out == ""
    assert is_one_line(err)
    assert says in err


def test_command_without_a_service_says_how_to_start_one(retort: Retort) -> None:
    status, _, err = retort("--url", f"http://127.0.0.1:{free_port()}", "jobs")
    assert status == 1
    assert is_one_line(err)
    assert "`retort serve`" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training": {"epochs": 0}}, "training/epochs: "),
        ({"methods": ["kdd"]}, "Did you mean 'kd'?"),
        ({"methods": [{"preset": "kd", "temperatur": 2}]}, "Did you mean 'temperature'?"),
        ({"methods": [{"preset": "kd", "temperature": 0}]}, "temperature"),
        ({"methods": [{"preset": "kd", "temperature": "hot"}]}, "temperature"),
        ({"students": ["resnet9"]}, "Did you mean 'resnet"),
        ({"dataset": {"kind": "folder", "path": "../../etc"}}, "../../etc"),
        ({"teacher": "tch_unknown"}, "tch_unknown"),
        ({"trainig": {}}, "Did you mean 'training'?"),
    ],
)
def test_submit_refuses_a_job_that_makes_no_sense_by_field(
    api: Api, cli: Retort, job_file: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    status, out, err = cli("submit", job_file(**changes))
    assert status == 1
    assert out == ""
    assert is_one_line(err)
    assert says in err
    assert cli("--json", "jobs")[1] == "[]\n"


@pytest.mark.parametrize(
    ("text", "says"), [('{"a": 1,}', "line 1 column"), ("[]", "JSON list"), ('{"teacher": {"file": "x"}}', "file")]
)
def test_submit_refuses_a_job_file_that_cannot_be_read(cli: Retort, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    status, _, err = cli("submit", path)
    assert status == 1
    assert is_one_line(err)
    assert says in err


def test_traceback_is_text_whatever_it_quotes(retort: Retort, tmp_path: Path) -> None:
    path = tmp_path / "job\x1b[2J\u202e.json"
    path.write_text("{")
    status, out, err = retort("--traceback", "submit", path)
    assert (status, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert "job\\x1b[2J\\u202e.json is not JSON" in err
    assert not set("\x1b\u202e") & set(err)


def test_traceback_is_an_option_of_retort_and_not_any_text_of_its_command_line(retort: Retort) -> None:
    """Here it is the id of a job, which ``--`` lets begin with anything."""
    status, _, err = retort("--url", "http://127.0.0.1:9", "show", "--", "--traceback")
    assert status == 1
    assert is_one_line(err)


UTF16 = "PowerShell's `>` writes it, and has to be UTF-8: save it as UTF-8"


def test_submit_reads_a_job_file_of_windows_or_says_what_to_do(
    cli: Retort, job_file: Callable[..., Path], tmp_path: Path
) -> None:
    text = job_file().read_text()
    path = tmp_path / "windows.json"
    path.write_bytes(text.encode("utf-8-sig"))
    assert cli("submit", "--dry-run", path)[0] == 0
    path.write_bytes(text.encode("utf-16"))
    status, _, err = cli("submit", "--dry-run", path)
    assert status == 1
    assert is_one_line(err)
    assert f"windows.json is UTF-16, as {UTF16}" in err


def test_api_key_file_of_windows_is_read_or_refused_with_the_next_step(cli: Retort, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(("k" * 32 + "\r\n").encode("utf-8-sig"))
    assert cli("--api-key-file", tmp_path / "key", "--json", "jobs")[0] == 0
    (tmp_path / "key").write_bytes(("k" * 32).encode("utf-16"))
    status, _, err = cli("--api-key-file", tmp_path / "key", "jobs")
    assert (status, UTF16 in err) == (1, True)


def test_teachers_upload_of_what_is_no_onnx_is_refused_and_leaves_nothing(
    api: Api, cli: Retort, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(b"not a network")
    status, _, err = cli("teachers", "upload", path)
    assert status == 1
    assert is_one_line(err)
    assert "ONNX" in err
    assert cli("--json", "teachers", "list")[1] == "[]\n"
    assert list(api.settings.teachers_dir.iterdir()) == []


def test_api_key_file_that_is_empty_is_refused(cli: Retort, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    status, _, err = cli("--api-key-file", tmp_path / "key", "jobs")
    assert status == 1
    assert is_one_line(err)
    assert "first line" in err


def test_api_key_file_opens_the_service(retort: Retort, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("k" * 32 + "\n")
    with running_api(make_settings(tmp_path, api_key_file=key_file)) as api:
        assert retort("--url", api.url, "--api-key-file", key_file, "--json", "jobs")[:2] == (0, "[]\n")
        status, _, err = retort("--url", api.url, "jobs")
    assert status == 1
    assert "Unauthorized" in err


# ------------------------------------------------------------------------------------------------------------ jobs


def test_submit_prints_the_id_and_the_job_is_there(api: Api, cli: Retort, job_file: Callable[..., Path]) -> None:
    status, out, _ = cli("submit", job_file(name="mine"))
    assert status == 0
    job_id = out.strip()
    assert "mine" in cli("jobs")[1]
    assert job_id in cli("show", job_id)[1]
    assert cli("cancel", job_id)[:2] == (0, "cancelled\n")
    assert cli("jobs", "--status", "queued")[1].count(job_id) == 0
    assert cli("jobs", "--status", "cancelled")[1].count(job_id) == 1


def test_pause_resume_cancel_and_retry_of_jobs_and_runs(api: Api, cli: Retort, job_file: Callable[..., Path]) -> None:
    job_id = cli("submit", job_file(priority=-2, parallel_runs=1))[1].strip()
    shown = cli("show", job_id)[1].splitlines()
    assert ["priority", "-2"] in [line.split() for line in shown]
    assert ["runs", "at", "once", "1"] in [line.split() for line in shown]
    first, second = (run.id for run in api.records.runs(job_id))
    assert cli("pause", job_id)[:2] == (0, "paused\n")
    assert cli("resume", first)[:2] == (0, "queued\n")
    assert cli("pause", first)[:2] == (0, "paused\n")
    assert cli("resume", job_id)[:2] == (0, "queued\n")
    assert cli("cancel", second)[:2] == (0, "cancelled\n")
    status, out, _ = cli("retry", second)
    assert status == 0
    again = out.strip()
    assert json.loads(cli("--json", "retry", job_id)[1])["id"] == again
    assert job_id in cli("show", again)[1]
    assert second in cli("show", api.records.runs(again)[0].id)[1]
    status, _, err = cli("resume", second)
    assert status == 1
    assert "it was cancelled, but it can be retried" in err


def test_retry_can_be_watched_to_its_end(api: Api, cli: Retort, job_file: Callable[..., Path]) -> None:
    job_id = cli("submit", job_file())[1].strip()
    cli("cancel", job_id)
    again = cli("retry", job_id)[1].strip()
    tell_and_end(api, again, 1)
    status, out, err = cli("retry", "--watch", job_id)
    assert status == 0
    assert err.splitlines()[0] == again
    assert out.split()[:2] == ["student", "method"]


def test_submit_uploads_a_teacher_that_is_given_by_its_path(
    cli: Retort, job_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "linear.onnx").write_bytes(onnx_bytes(salt=1.0))
    teacher = {"path": "nets/linear.onnx", "preprocessing": PREPROCESSING.model_dump(mode="json")}
    status, out, err = cli("--json", "submit", job_file(teacher=teacher))
    assert status == 0, err
    listed = json.loads(cli("--json", "teachers", "list")[1])
    assert json.loads(out)["teacher"] in [item["id"] for item in listed if item["name"] == "linear"]


def test_submit_dry_run_shows_the_runs_and_posts_nothing(cli: Retort, job_file: Callable[..., Path]) -> None:
    status, out, _ = cli("submit", "--dry-run", job_file(seeds=[0, 1]))
    assert status == 0
    assert out.startswith("4 runs, none started\n")
    assert "teacher sees  8x8 pixels of each box" in out
    assert "digits, the default of digits, has filled in views.augmentation.recipe" in " ".join(out.split())
    assert "warning" not in out
    assert "1,797 forward passes to run, 0 of 1,797 cached" in out
    assert "total        not known, it was never measured" in out
    assert "no run of cnn_s on such pictures has ever ended here" in " ".join(out.split())
    out = cli("submit", "--dry-run", job_file(methods=["rld"]))[1]
    assert "warning: method 'rld': its distillation terms warm up over 20 epochs" in " ".join(out.split())
    assert cli("--json", "jobs")[1] == "[]\n"


def test_watch_shows_what_happens_and_ends_with_the_results(api: Api, cli: Retort) -> None:
    job_id = add_job(api.queries).id
    tell_and_end(api, job_id, 2)
    status, out, err = cli("watch", job_id)
    assert status == 0
    assert "line 0" in err
    assert "cnn_s kd seed 0: succeeded" in err
    assert out.split()[:6] == ["student", "method", "top-1", "agreement", "ECE", "T"]
    run_id = api.records.runs(job_id)[0].id
    assert cli("watch", run_id)[0] == 0


def test_watch_of_a_job_that_failed_is_a_failure(api: Api, cli: Retort) -> None:
    job_id = add_job(api.queries).id
    tell_and_end(api, job_id, 0, State.FAILED)
    status, out, err = cli("watch", job_id)
    assert status == 1
    assert "failed" in out
    assert err.splitlines()[-1] == f"retort: {job_id} failed: loss is nan at step 7"


def test_command_output_escapes_what_a_stranger_chose(api: Api, cli: Retort) -> None:
    """The name of a graph's node, say, in an error: tables, lines, JSON and the last line all write it out."""
    job_id = add_job(api.queries).id
    api.records.claim_job()
    run_id = api.records.runs(job_id)[0].id
    start_run(api.records, run_id)
    node = "\x1b]0;pwned\x07\x1b[32mall runs succeeded\x9b0m\nretort: done"
    assert api.records.record_events(job_id, run_id, 1, [(0, {"type": "log", "level": "warning", "message": node})])
    assert api.records.move_run(run_id, 1, State.FAILED, error={"type": "E", "message": node})
    assert api.records.move_job(job_id, State.FAILED, error={"type": "E", "message": node})
    for words in (["show", job_id], ["show", run_id], ["watch", job_id], ["--json", "show", job_id]):
        _, out, err = cli(*words)
        shown = out + err
        assert not set(shown) & set("\x1b\x07\x9b"), words
        assert "]0;pwned" in shown
    lines = cli("watch", job_id)[2].splitlines()
    assert not any(line.startswith("retort: done") for line in lines)
    assert json.loads(cli("--json", "show", job_id)[1])["error"]["message"] == node


def test_watch_that_is_stopped_does_not_stop_the_job(api: Api) -> None:
    job_id = add_job(api.queries).id
    with subprocess.Popen(command("--url", api.url, "watch", job_id), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        job = api.records.claim_job()
        assert job is not None
        assert "job running" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert f"retort cancel {job_id}" in rest
    assert "Traceback" not in rest
    assert api.records.job(job_id).state is State.RUNNING


def test_report_and_show_run(api: Api, cli: Retort) -> None:
    run_id = run_with_artifact(api, 10)
    run = api.records.run(run_id)
    assert cli("report", "--csv", run.job_id)[1].splitlines()[1].startswith(run_id)
    assert "queued" in cli("report", run.job_id)[1]
    assert ARTIFACT in cli("show", run_id)[1]
    assert json.loads(cli("--json", "show", run_id)[1])["artifacts"][0]["size_bytes"] == 10


def test_download_fetches_what_is_not_there_yet(api: Api, cli: Retort, tmp_path: Path) -> None:
    run_id = run_with_artifact(api, 100_000)
    target = tmp_path / "files"
    status, out, err = cli("download", run_id, "--to", target)
    assert status == 0, err
    assert (target / ARTIFACT).read_bytes() == artifact_path(api, run_id).read_bytes()
    assert ARTIFACT in out
    # The service has lost its copy, and nobody misses it.
    artifact_path(api, run_id).unlink()
    assert cli("download", run_id, "--to", target)[0] == 0
    (target / ARTIFACT).write_bytes(b"damaged")
    assert cli("download", run_id, "--to", target)[0] == 1


def test_download_of_a_run_without_files_says_why(api: Api, cli: Retort, tmp_path: Path) -> None:
    run_id = api.records.runs(add_job(api.queries).id)[0].id
    status, _, err = cli("download", run_id, "--to", tmp_path / "files")
    assert status == 1
    assert "its state is queued" in err
    assert not (tmp_path / "files").exists()


# --------------------------------------------------------------------------------------------------- teachers, data


def test_teachers_can_be_uploaded_listed_and_deleted(cli: Retort, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(onnx_bytes())
    (tmp_path / "p.json").write_text(PREPROCESSING.model_dump_json())
    teacher_id = cli("teachers", "upload", tmp_path / "t.onnx", "--preprocessing", tmp_path / "p.json")[1].strip()
    again = cli("teachers", "upload", tmp_path / "t.onnx", "--preprocessing", PREPROCESSING.model_dump_json())
    assert again[1].strip() == teacher_id
    assert teacher_id in cli("teachers", "list")[1]
    assert cli("teachers", "delete", teacher_id) == (0, "", "")
    assert teacher_id not in cli("teachers", "list")[1]
    status, _, err = cli("teachers", "upload", tmp_path / "t.onnx", "--preprocessing", "grey")
    assert status == 1
    assert "'grey' is neither a JSON object nor a file" in err
    # Of timm and by name: this teacher takes one channel.
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"input_size": [3, 8, 8], "crop_pct": 0.8}}')
    for given in (tmp_path / "config.json", "imagenet"):
        status, _, err = cli("teachers", "upload", tmp_path / "t.onnx", "--preprocessing", given)
        assert status == 1
        assert "the preprocessing makes 3 channels" in err


def test_datasets_can_be_added_listed_and_deleted(api: Api, cli: Retort) -> None:
    dataset_id = cli("datasets", "add", "numbers", "digits")[1].strip()
    assert "numbers" in cli("datasets", "list")[1]
    assert cli("datasets", "delete", dataset_id) == (0, "", "")
    assert "numbers" not in cli("datasets", "list")[1]
    status, _, err = cli("datasets", "add", "pets", "folder", "--path", "pets", "--image-size", 32, 32)
    assert status == 1
    assert is_one_line(err)
    assert "pets" in err
    status, _, err = cli("datasets", "add", "pets", "folder", "--path", "pets", "--storage", "tape")
    assert status == 1
    assert "'decoded' or 'files'" in err
    for name in ("cat", "dog"):
        picture = api.settings.data_root / "pets" / name / "1.png"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(b"")
    status, out, err = cli("datasets", "add", "pets", "folder", "--path", "pets", "--on-bad-picture", "skip")
    assert (status, err.startswith("note: there is no test split")) == (0, True)
    assert cli("datasets", "bad-pictures", out.strip())[1].split() == ["split", "sample", "reason", "left", "out"]


def test_methods_and_students_are_listed(cli: Retort) -> None:
    assert "dtkd" in cli("methods")[1]
    assert "resnet8x4" in cli("students")[1]
    assert "mdistiller-cifar100" in cli("recipes")[1]


# ---------------------------------------------------------------------------------------------------------- caches


@pytest.fixture(params=["over HTTP", "in the folder"])
def cache_cli(request: pytest.FixtureRequest, api: Api, cli: Retort) -> Retort:
    """``retort cache``, both ways."""
    where = [] if request.param == "over HTTP" else ["--data-dir", api.settings.data_dir]
    return lambda *arguments: cli("cache", *where, *arguments)


def test_cache_can_be_listed_shown_verified_and_deleted(api: Api, cache_cli: Retort) -> None:
    spec = make_spec(samples=300)
    write_cache(api.settings.caches_dir, spec).add_provenance({"device": "NVIDIA H200"})
    key = spec.key
    of_logits = make_spec(samples=5, preprocessing=imported_preprocessing("logits", None))
    CacheWriter(api.settings.caches_dir, of_logits)
    imported = of_logits.key
    listed = cache_cli("list")[1]
    assert key[:12] in listed
    assert imported[:12] in listed
    assert "complete" in listed
    listed = cache_cli("list", "--imported")[1]
    assert (key[:12] in listed, imported[:12] in listed) == (False, True)
    shown = cache_cli("show", key[:6])[1]
    assert key in shown
    assert "NVIDIA H200" in shown
    assert cache_cli("verify", key)[:2] == (0, "1 blocks, 300 rows: every checksum and statistic is right\n")
    status, _, err = cache_cli("show", "0000" if not key.startswith("0000") else "1111")
    assert status == 1
    assert is_one_line(err)
    assert cache_cli("delete", key[:8])[0] == 0
    assert key[:12] not in cache_cli("list")[1]


def test_cache_export_writes_one_file(api: Api, cache_cli: Retort, tmp_path: Path) -> None:
    spec = make_spec(samples=300)
    write_cache(api.settings.caches_dir, spec)
    path = tmp_path / "cache.npz"
    assert cache_cli("export", spec.key[:8], "--output", path)[0] == 0
    with np.load(path) as arrays:
        assert arrays["logits"].shape == (1, 300, 10)


def test_cache_verify_of_a_damaged_one_names_the_file(api: Api, cache_cli: Retort) -> None:
    spec = make_spec(samples=300)
    write_cache(api.settings.caches_dir, spec)
    chunk = next(path for path in (api.settings.caches_dir / spec.key / "logits" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    status, out, err = cache_cli("verify", spec.key)
    assert status == 1
    assert "damaged" in out
    assert "logits" in out
    assert is_one_line(err)


def test_cache_verify_recomputes_by_the_teacher_in_a_folder(digits: "Digits", retort: Retort) -> None:
    folders, teacher = digits.folders, digits.teacher_spec
    folders.teachers.mkdir(exist_ok=True)
    kept = folders.teachers / f"{digits.plan.train_cache.teacher_sha256}.onnx"
    kept.write_bytes(teacher.path.read_bytes())
    line = ("cache", "--data-dir", folders.data_dir, "verify", digits.plan.train_cache.key, "--recompute", 16)
    status, out, err = retort(*line)
    assert status == 0, err
    assert "16 rows through the teacher again" in out
    kept.unlink()
    status, _, err = retort(*line)
    assert status == 1
    assert is_one_line(err)


# ------------------------------------------------------------------------------------------------------- processes


def test_engine_health_needs_an_engine(api: Api, retort: Retort) -> None:
    line = ("engine-health", "--data-dir", api.settings.data_dir)
    status, _, err = retort(*line)
    assert status == 1
    assert "no engine leads" in err
    records = EngineQueries(api.context.database, "engine")
    assert records.acquire_lease()
    assert retort(*line)[0] == 0
    # Also the GPUs that it promises; what another engine found out about its own is forgotten.
    report = GpuReport(promised=1, failure="the driver is too old")
    records.record_gpus(report.model_dump(mode="json"))
    status, _, err = retort(*line)
    assert status == 1
    assert "a GPU is promised to runs and none works: the driver is too old" in err
    assert EngineQueries(api.context.database, "another").acquire_lease(ttl_s=0)
    assert retort(*line)[0] == 0
    with api.context.database.write() as session:
        session.get_one(EngineRecord, 1).heartbeat_at = utc_now().replace(year=2090)
    status, _, err = retort(*line)
    assert status == 1
    assert "no engine is known to work" in err


@pytest.mark.parametrize("name", ["serve", "api"])
def test_serve_for_all_hosts_needs_a_key(retort: Retort, tmp_path: Path, name: str) -> None:
    status, _, err = retort(name, "--host", "0.0.0.0", "--data-dir", tmp_path / "data")
    assert status == 1
    assert is_one_line(err)
    assert "RETORT_API_KEY_FILE" in err
    assert not (tmp_path / "data").exists()


def test_setting_that_makes_no_sense_is_named(retort: Retort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_GPU_SHARE", "2")
    status, _, err = retort("serve")
    assert status == 1
    assert is_one_line(err)
    assert "gpu_share" in err


def test_setting_that_is_misspelt_is_named_and_the_command_goes_on(
    cli: Retort, retort: Retort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands say it on standard error; processes with a log warn there."""
    monkeypatch.setenv("RETORT_GPU", "3")
    said = "the variable RETORT_GPU is none of Retort's and has no effect: did you mean RETORT_GPUS?"
    status, out, err = cli("--json", "jobs")
    assert (status, json.loads(out), err) == (0, [], f"retort: {said}\n")
    # Neither starts.
    monkeypatch.setenv("RETORT_GPUS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for line in (("api", "--host", "0.0.0.0"), ("engine",)):
        status, out, err = retort(*line)
        assert (status, is_one_line(err)) == (1, True)
        first = json.loads(out.splitlines()[0])
        assert (first["level"], first["event"]) == ("warning", said)


# ------------------------------------------------------------------------------------------------- standard streams

STREAMS = """
import os, subprocess, sys
from service.cli import streams
streams.fill_closed()
streams.drop_unwritable()
for number in range(2000):
    print("a line of no great length")
    sys.stderr.write("another\\n")
# A file that took the number of a stream would get its lines, here and in a program that this one starts.
if open(os.devnull).fileno() < 3:
    sys.exit("a stream is closed")
sys.exit(subprocess.run([sys.executable, "-c", "import os; [os.fstat(number) for number in range(3)]"]).returncode)
"""


def retort_process(*arguments: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=buffered(), check=False, **streams)


@pytest.mark.parametrize("kind", ["full", "left", "closed"])
def test_streams_of_a_service_never_fail(kind: str) -> None:
    """Nor does Python's own end, whose exit status would be 120."""
    if kind == "closed":
        script = 'exec "$@" <&- >&- 2>&-'
        done = subprocess.run(["sh", "-c", script, "sh", sys.executable, "-c", STREAMS], cwd=ROOT, env=buffered())
    elif kind == "full":
        with open("/dev/full", "wb") as full:
            done = retort_process("-c", STREAMS, stdout=full, stderr=full)
    else:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = retort_process("-c", STREAMS, stdout=writing, stderr=writing)
        finally:
            os.close(writing)
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["jobs"], ["--json", "jobs"]])
def test_streams_that_cannot_be_written_fail_a_command_which_says_so(api: Api, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = retort_process("-m", "service.cli", "--url", api.url, *arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert is_one_line(done.stderr.decode())
    assert b"No space left on device" in done.stderr
