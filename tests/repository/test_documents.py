"""Documents: generated tables are up to date, links resolve, what they name exists, snippets run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel

from service.cli.processes.supervisor import free_port
from service.client.client import Client
from store import CacheReader, CacheSpec, CacheWriter
from tests.repository.documents import BLOCK, GENERATED, ROOT, documents, rewritten
from tests.support.digits import Digits
from workers.config.cache import CacheOptions
from workers.config.draft import PlanDraft
from workers.config.job import Plan
from workers.config.schedules import CosineSchedule, StepSchedule
from workers.config.teacher import Preprocessing
from workers.config.training import AdamW, Sgd, Training
from workers.config.views import CropFlip, ResizedCrop, Views
from workers.methods.catalog import describe

DOCUMENTS = documents()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What whoever deploys makes, and git ignores.
MADE_BY_HAND = ("docker/.env", "docker/secrets/api_key")
PLAN = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["ce"]}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its fenced blocks, in which a bracket or a # is code."""
    return FENCE.sub("", path.read_text())


def snippets(path: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(path.read_text()) if found == language]


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, no punctuation, a hyphen for each space."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_generated_tables_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert rewritten(text) == text, "run: python -m tests.repository.documents"


@pytest.mark.parametrize("make", GENERATED.values(), ids=GENERATED)
def test_a_generated_table_has_a_cell_for_each_column(make: Callable[[], str]) -> None:
    # A bar inside a cell, as of a divergence, would end it.
    rows = make().replace("\\|", "").splitlines()
    assert len(rows) > 2
    assert len({row.count("|") for row in rows}) == 1


def test_every_generated_table_has_its_place() -> None:
    placed = [name for path in DOCUMENTS for name, _ in BLOCK.findall(path.read_text())]
    assert sorted(placed) == sorted(GENERATED)


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """The configurations that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for part in get_args(annotation):
            yield from models(part)


def fields(model: type[BaseModel]) -> Iterator[str]:
    """Every field of a configuration and of those inside it, but for the names that tell variants apart."""
    for name, field in model.model_fields.items():
        if name not in ("kind", "recipe"):
            yield name
        for inner in models(field.annotation):
            yield from fields(inner)


@pytest.mark.parametrize(
    ("document", "model"),
    [("workers", Training), ("workers", Views), ("workers", Preprocessing), ("workers", Plan), ("store", CacheOptions)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_field_of_a_job_stands_in_a_table(document: str, model: type[BaseModel]) -> None:
    wanted = set(fields(model)) if model is not Plan else set(Plan.model_fields)
    table = "\n".join(re.findall(r"^\|.*$", (ROOT / document / "README.md").read_text(), re.MULTILINE))
    assert wanted
    assert wanted - set(re.findall(r"`(?:\w+\.)?(\w+)`", table)) == set()


@pytest.mark.parametrize(
    "model",
    [Training, Sgd, AdamW, StepSchedule, CosineSchedule, Views, CropFlip, ResizedCrop, Preprocessing, CacheOptions],
    ids=lambda model: model.__name__,
)
def test_a_default_in_a_table_is_the_one_in_force(model: type[BaseModel]) -> None:
    text = (ROOT / "workers/README.md").read_text() + (ROOT / "store/README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in re.findall(r"^\|.*$", text, re.MULTILINE)]
    for name, field in model.model_fields.items():
        if name in ("kind", "recipe") or field.default is None or isinstance(field.default, BaseModel):
            continue
        cells = [row[place + 1] for row in rows for place in range(len(row) - 1) if f"`{name}`" in row[place]]
        assert any(means(cell, field.default) for cell in cells), f"{name} is {field.default}, the tables say {cells}"


def means(cell: str, value: object) -> bool:
    """Whether a cell of a table says this default; those of the preprocessing are also told in words."""
    text = {"ImageNet's": json.dumps(value), "1/255": str(1 / 255)}.get(cell, cell.strip("`"))
    try:
        said = json.loads(text)
    except ValueError:
        return text == value
    if isinstance(value, tuple):
        return list(value) == pytest.approx(said, rel=1e-4)
    return bool(said == value)


def test_the_readme_counts_the_presets() -> None:
    assert f"{len(describe())} presets" in (ROOT / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ links and names


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_resolve(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}: no such heading, there are {sorted(anchors(target))}"


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        linked = (link.partition("#")[0] for link in LINK.findall(prose(path)))
        waiting += [(path.parent / file).resolve() for file in linked if file.endswith(".md")]
    assert reached == set(DOCUMENTS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_files_and_programs_exist(path: Path) -> None:
    text = path.read_text()
    for file in re.findall(r"`((?:service|store|workers|tests|docker)/[\w./]+)`", text):
        assert (ROOT / file).exists() or file in MADE_BY_HAND, file
    for module in re.findall(r"python -m ((?:tests|workers|service)(?:\.[a-z_]+)+)\b(?!\.)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.parametrize("path", sorted((ROOT / "service").glob("*.svg")), ids=name_of)
def test_pictures_are_small_and_load_nothing(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 200_000
    assert not re.search(r"<script|<image|href|@import|url\((?!#)", text)


# -------------------------------------------------------------------------------------------------------- snippets


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param(path, code, id=f"{name_of(path)}-{n}")
        for path in DOCUMENTS
        for n, code in enumerate(snippets(path, "json"))
    ],
)
def test_json_snippets_are_parts_of_a_job(path: Path, code: str) -> None:
    given: Mapping[str, Any] = json.loads(code)
    fields = {name: value for name, value in given.items() if name not in ("teacher", "teachers")}
    if isinstance(given.get("dataset"), str):
        fields["dataset"] = PLAN["dataset"]
    others = {"students", "methods"} if given.get("evaluate") else set()
    draft = PlanDraft.model_validate({name: value for name, value in PLAN.items() if name not in others} | fields)
    draft.filled(draft.dataset)
    if isinstance(given.get("teacher"), dict):
        Preprocessing.model_validate(given["teacher"]["preprocessing"])


def test_the_python_snippet_of_the_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logits = np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32)
    code, by_key = snippets(ROOT / "store/README.md", "python")
    names: dict[str, Any] = {"logits_of": lambda view, start, stop: logits[start:stop]}
    exec(code, names)  # a document of this repository
    np.testing.assert_array_equal(names["rows"], logits[[3, 1, 4]].astype(np.float16))
    assert {CacheSpec, CacheWriter, CacheReader} <= {value for value in names.values() if isinstance(value, type)}
    (tmp_path / "retort-data").mkdir()
    (tmp_path / "caches").rename(tmp_path / "retort-data/caches")
    exec(by_key, names)
    np.testing.assert_array_equal(names["logits_NC"], logits.astype(np.float16))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_start_and_the_python_snippets_run(tmp_path: Path, digits: Digits) -> None:
    """The walk with curl as it is written, but for the port, the demo (whose teacher is here) and its cache."""
    port = free_port()
    files = tmp_path / "demo-data/teacher/artifacts"
    files.parent.mkdir(parents=True)
    files.symlink_to(digits.teacher_spec.path.parent)
    (tmp_path / "teacher.onnx").symlink_to(digits.teacher_spec.path)
    [walk] = snippets(ROOT / "README.md", "bash")
    before = ". .venv/bin/activate\nretort demo --no-keep --data-dir demo-data\n"
    assert before in walk
    python = [code for name in ("README.md", "service/README.md") for code in snippets(ROOT / name, "python")]
    preview = snippets(ROOT / "workers/methods/README.md", "bash")
    # Before the service ends: what the other snippets need is there then.
    run_python = "\n".join(f"{sys.executable} - <<'SNIPPET'\n{code}SNIPPET\necho python-$?" for code in python)
    walk = walk.replace(before, "").replace("kill $SERVICE", "\n".join([*preview, run_python, "kill $SERVICE", "wait"]))
    # A program and no function: of one in the background, a shell would be what `kill $SERVICE` ends.
    program = tmp_path / "bin" / "retort"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    program.chmod(0o755)
    script = f"export RETORT_PORT={port}\n" + walk
    script = script.replace("8765", str(port)).replace("\npython3 ", f"\n{sys.executable} ")
    shown = subprocess.run(
        ["bash", "-eu"],
        input=script,
        capture_output=True,
        text=True,
        timeout=800,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}"},
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("python-0") == len(python), shown.stdout + shown.stderr
    assert "'avoided'" in shown.stdout  # teacher_forwards
    assert "cnn_s,kd" in shown.stdout  # the report
    assert "unknown-name" in shown.stdout
    assert "the student temperature of sample" in shown.stdout  # the preview of a bad expression
    assert (tmp_path / "first-bytes").stat().st_size == 100
    assert (tmp_path / "student.onnx").stat().st_size > 1000


def test_the_snippets_of_the_client_use_it_as_it_is() -> None:
    for name in ("README.md", "service/README.md", "service/client/README.md"):
        code = "".join(snippets(ROOT / name, "python"))
        called = set(re.findall(r"\bclient\.(\w+)\(", code))
        assert called
        assert all(hasattr(Client, method) for method in called)
