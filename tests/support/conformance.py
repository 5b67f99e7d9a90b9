"""Schemathesis against this API: a service with something of everything in it, every check, every phase.

What is sent is made from our own OpenAPI document: examples, edge cases of every field, random requests that fit it and
random requests that do not, and chains of requests that use each other's answers.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from service.api.schemas.methods import EXAMPLE_CACHE
from service.api.schemas.student_files import EXAMPLE_STUDENT_FILE
from service.api.schemas.teachers import EXAMPLE_TEACHER
from service.db.deletions.student_files import StudentFiles
from service.db.ids import new_id
from service.db.keys.scopes import Scope
from service.db.models import DatasetRecord, EngineRecord, TeacherRecord, utc_now
from service.db.states import State
from service.db.student_file_record import StudentFileRecord
from service.settings import Settings
from tests.support.filled import ARTIFACT, fill, make_cache
from tests.support.service_helpers import Api, make_plan, make_settings, teacher_row
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.prepare import prepare
from workers.logs import RUN_LOG

KEY = "0123456789abcdef0123456789abcdef"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
# A request that fits the document and is refused all the same, and why no schema could say so.
SEMANTIC = {
    "create_job": "teacher, dataset and students must be there and must fit each other",
    "add_runs": "the same of the runs, and of the job's plan with them",
    "extend_run": "its epochs and schedule have to go on from those of the run",
    "create_teacher": "the file must be an ONNX classifier",
    "import_cache": "the file must hold logits of the dataset's samples",
    "create_student_file": "the file must be weights or a program",
    "create_dataset": "the files must be there",
    "preview_method": "temperatures depend on the cache",
    "get_report": "the baseline must be a method of the job",
    "compare_jobs": "the baseline must be a method of the jobs, and these must be about the same data",
}
WHOLE = 4
ACCEPTED = ["2xx", "304", "401", "403", "404", "409"]


def settings_of(folder: Path) -> Settings:
    """Those of a service whose key is ``KEY``."""
    key = folder / "key"
    key.write_text(f"{KEY}\n")
    return make_settings(folder, api_key_file=key, heartbeat_max_age_s=1e6)


def stock(api: Api) -> dict[str, list[str]]:
    """Teachers, datasets, caches, and jobs in every state.

    Returns:
        Real ids by the name of the parameter that takes them; ``whole`` are complete caches.
    """
    (api.settings.data_dir / "result.json").write_bytes(ARTIFACT)
    for split in ("train", "test"):
        folder = api.settings.data_root / "flowers" / split / "rose"
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    with api.context.database.write() as session:
        engine = session.get_one(EngineRecord, 1)
        engine.holder, engine.heartbeat_at = "engine", utc_now()
    teacher = api.queries.get(TeacherRecord, api.teacher())
    others = [api.queries.add_teacher(teacher_row(digit * 64), lambda: None)[0].id for digit in "123456"]
    described = {"kind": "weights", "name": "begun", "size_bytes": 7, "tensors": 1, "parameters": 1, "dtypes": ["F32"]}
    student_files = StudentFiles(api.context.database, api.settings)
    files = [
        student_files.add(
            StudentFileRecord(id=new_id("stf"), sha256=digit * 64, **described), lambda path: path.touch()
        )[0].id
        for digit in "123456"
    ]
    datasets = [
        api.queries.add_dataset(DatasetRecord(id=new_id("ds"), name=f"digits {n}", spec={"kind": "digits"}))[0].id
        for n in range(6)
    ]
    decoded = prepare(DigitsDataset(), "test", api.settings.data_root, api.settings.datasets_dir)
    jobs = fill(api.context.database, teacher, make_plan(), [*State, *State])
    runs = [run for job in jobs for run in api.queries.runs(job)[0]]
    for run in runs:
        folder = api.settings.jobs_dir / run.job_id / run.id / "a1"
        folder.mkdir(parents=True)
        (folder / RUN_LOG).write_bytes(ARTIFACT)
    keys = [api.context.keys.issue(f"key {n}", Scope.READ)[0].id for n in range(6)]
    caches = [make_cache(api.settings.caches_dir, number, whole=number < WHOLE) for number in range(6)]
    return {
        "teacher_id": [teacher.id, *others],
        "student_file_id": files,
        "dataset_id": datasets,
        "dataset": [*datasets, decoded.fingerprint],
        "job_id": jobs,
        "run_id": [run.id for run in runs],
        "key_id": keys,
        "key": caches,
        "whole": caches[:WHOLE],
        "name": ["result.json"],
    }


def configuration(ids: Mapping[str, Sequence[str]], *, light: bool) -> str:
    """The configuration of Schemathesis, as TOML; its parameters take these ids, most of the time."""
    lines = [
        "continue-on-failure = true",
        "[auth.openapi.HTTPBearer]",
        f'bearer = "{KEY}"',
        "[checks.positive_data_acceptance]",
        f"expected-statuses = {json.dumps(ACCEPTED)}",
    ]
    for name, values in ids.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(list(values))}"]
    bound = {f"path.{name}": name for name in ids} | {"body.teacher": "teacher_id", "body.cache": "whole"}
    lines += ["[parameters]"]
    lines += [f'"{place}" = {{ dictionary = "{name}", probability = 0.7 }}' for place, name in bound.items()]
    for operation, reason in SEMANTIC.items():
        uploads = operation in ("create_teacher", "import_cache", "create_student_file")
        many = operation in ("create_job", "add_runs", "preview_method")
        lines += [
            f"[[operations]]  # {reason}",
            f'include-operation-id = "{operation}"',
            "[operations.checks.positive_data_acceptance]",
            f"expected-statuses = {json.dumps([*ACCEPTED, '422'])}",
            *(["[operations.phases.coverage]", "enabled = false"] if light and many else []),
            *(["[operations.generation]", "max-examples = 4"] if light and uploads else []),
        ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Outcome:
    """What a run of Schemathesis has found.

    Attributes:
        status: 0 if nothing is wrong.
        text: what it says about it.
        report: the same for programs.
    """

    status: int
    text: str
    report: Mapping[str, Any]


def run(url: str, ids: Mapping[str, Sequence[str]], folder: Path, *options: str, light: bool = False) -> Outcome:
    """One run of the command against the API at ``url``; files are written to ``folder``.

    Args:
        light: without the edge cases of the two bodies that have thousands, and with few uploads: each is inspected
            in a process of its own.
    """
    config, document, report = (folder / name for name in ("schemathesis.toml", "openapi.json", "report.json"))
    config.write_text(configuration(ids, light=light))
    described = httpx2.get(f"{url}/openapi.json", timeout=30).text
    # The document's examples name things that are not here.
    examples = {EXAMPLE_TEACHER: "teacher_id", EXAMPLE_STUDENT_FILE: "student_file_id", EXAMPLE_CACHE: "whole"}
    for example, real in ((example, ids[name][0]) for example, name in examples.items()):
        described = described.replace(example, real)
    document.write_text(described)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(document)]
    command += ["--url", url, "--no-color", "--generation-database", "none", "--checks", "all"]
    command += ["--phases", ",".join(PHASES), "--report", "json", "--report-json-path", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    found = json.loads(report.read_text()) if report.exists() else {}
    return Outcome(done.returncode, done.stdout + done.stderr, found)
