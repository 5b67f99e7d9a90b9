"""``retort reproduce``: train a run again from its bundle, and say whether the weights are the same bits."""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, CommandFailed, parse_json, session
from service.cli.job_commands.follow import follow
from service.client.client import Client
from service.client.transport import Document
from workers.config.teacher import TeacherReading

_BUNDLE = "bundle.json"
# In the order in which one follows from the other: what is named first explains most.
_FIELDS = ("job", "teacher", "teachers", "datasets", "caches", "seeds", "versions", "machine")
# Of a line of metrics, what no two runs have in common.
_TIMES = frozenset({"images_per_s", "seconds"})


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel="Jobs")(reproduce)


def reproduce(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="RUN_ID")],
) -> None:
    """Train a run again from its bundle, as a new job; exit status 1 unless the weights are the same bits.

    The teacher has to be there (by its SHA-256), and the dataset to have the same content, or nothing is trained.
    """
    options = session(context)
    if not id.startswith("run_"):
        raise BadInput(f"{id!r} is no id of a run (run_...)")
    with options.client() as client:
        bundle = fetch_bundle(client, id)
        teachers = find_teachers(client, bundle)
        bundle["job"] = rename_customs(bundle["job"], {method["id"] for method in client.methods()})
        # The bundle states everything: no recipe is to fill in what it leaves at a default.
        job = {**bundle["job"], **teachers, "name": f"reproduces {id}", "recipe": "none"}
        posted = client.submit(job)
        stop_if_other_data(client, posted["id"], bundle["datasets"])
        ended = follow(client, posted["id"], render.console(stderr=True))
        if ended["state"] != "succeeded":
            message = (ended["error"] or {}).get("message")
            raise CommandFailed(f"{posted['id']} {ended['state']}" + (f": {message}" if message else ""))
        [again] = client.runs(posted["id"])
        report = compare(bundle, fetch_bundle(client, again["id"]), client.metrics(id), client.metrics(again["id"]))
    document = {"object": "reproduction", "run": id, "again": again["id"], **report}
    options.show(document, lambda: _page(document))
    if not report["same_weights"]:
        raise CommandFailed(f"{again['id']} has other weights than {id}; {report['differences'][0]}")


def fetch_bundle(client: Client, run_id: str) -> Document:
    """Fetch bundle.json of a run.

    Raises:
        CommandFailed: it has none, or one of another format.
    """
    names = {file["name"] for file in client.artifacts(run_id)}
    if _BUNDLE not in names:
        state = client.run(run_id)["state"]
        raise CommandFailed(
            f"{run_id} has no {_BUNDLE}: its state is {state}"
            + ("; it was trained by a version that left none: train it once more" if state == "succeeded" else "")
        )
    with tempfile.TemporaryDirectory() as folder:
        text = client.download(run_id, _BUNDLE, Path(folder) / _BUNDLE).read_text()
    bundle = parse_json(text, f"{_BUNDLE} of {run_id}")
    if bundle.get("format") != 1:
        raise CommandFailed(f"{_BUNDLE} of {run_id} has format {bundle.get('format')!r}; this version reads format 1")
    return bundle


def find_teachers(client: Client, bundle: Document) -> Document:
    """``teacher`` of a job that is posted again, or ``teachers``. Raises CommandFailed, as ``find_teacher``."""
    several = bundle.get("teachers")
    if several:
        return {"teachers": [{**_choice(client, each), "weight": each["weight"]} for each in several]}
    found = _choice(client, bundle["teacher"])
    return found if "caches" in found else {"teacher": found["id"]}


def _choice(client: Client, wanted: Document) -> Document:
    """A teacher by its id, or imported logits by the keys of their caches, which have to be there."""
    caches = wanted.get("caches")
    if not caches:
        return {"id": find_teacher(client, wanted)}
    there = {cache["key"] for cache in client.caches() if cache["state"] == "complete"}
    for split, key in caches.items():
        if key not in there:
            raise CommandFailed(
                f"the logits {wanted['name']!r} of {split} are not there (cache {key}): import them again"
            )
    return {"caches": caches}


def find_teacher(client: Client, wanted: Document) -> str:
    """Find the id of the teacher with this digest, output and preprocessing.

    Raises:
        CommandFailed: there is none, saying what to upload.
    """
    stated = TeacherReading.model_validate(wanted.get("reading", {}))
    alike = [teacher for teacher in client.teachers() if teacher["sha256"] == wanted["sha256"]]
    for teacher in alike:
        is_same = all(teacher[name] == wanted[name] for name in ("output", "preprocessing"))
        reading = TeacherReading.model_validate(
            {name: teacher[name] for name in TeacherReading.model_fields if name in teacher}
        )
        if is_same and reading == stated:
            return str(teacher["id"])
    what = "with another output, preprocessing or reading" if alike else "not at all"
    raise CommandFailed(
        f"the teacher {wanted['name']!r} with SHA-256 {wanted['sha256']} is there {what}: upload it with the output "
        f"{wanted['output']!r}, the preprocessing {json.dumps(wanted['preprocessing'])} and what is stated of it: "
        f"{stated.model_dump_json()}"
    )


def rename_customs(job: Document, presets: Collection[str]) -> Document:
    """Give custom methods another name that have a preset's: earlier versions took such jobs. Names change no weights.

    Args:
        presets: ids of all methods.
    """

    def renamed(method: Document) -> Document:
        name = method.get("name")
        if method["preset"] != "custom" or name == "custom" or name not in presets:
            return method
        return {**method, "name": f"custom_{name}"}

    return {**job, "methods": [renamed(method) for method in job["methods"]]}


def stop_if_other_data(client: Client, job_id: str, wanted: Mapping[str, str | None]) -> None:
    """Follow a job until its splits are known, and cancel it if they are not those of the bundle.

    Raises:
        CommandFailed: naming the split.
    """
    for event in client.events(job_id):
        if event["type"] in ("cache_ready", "done"):
            return
        if event["type"] != "dataset_ready":
            continue
        split, found = event["data"]["split"], event["data"]["fingerprint"]
        if wanted.get(split) not in (None, found):
            client.cancel(job_id)
            raise CommandFailed(
                f"the {split} split has other content now: fingerprint {found}, the run was trained on "
                f"{wanted[split]}. {job_id} is cancelled; restore the dataset below the data root"
            )


def compare(
    before: Document, after: Document, metrics_before: Sequence[Document], metrics_after: Sequence[Document]
) -> Document:
    """Compare the bundles and metrics of two runs.

    Returns:
        ``same_weights``, and ``differences``: sentences, the likeliest cause first; of the metrics the first epoch.
    """
    differences = [
        f"{name} was {_shown(one)}, is {_shown(other)}"
        for field in _FIELDS
        for name, one, other in _unlike(field, before.get(field), after.get(field))
        # The name of a job changes nothing.
        if name != "job.name"
    ]
    for number, (line, again) in enumerate(zip(metrics_before, metrics_after, strict=False), 1):
        unlike = [name for name in line if name not in _TIMES and line[name] != again.get(name)]
        if unlike:
            name = unlike[0]
            differences.append(f"{name} of epoch {number} was {_shown(line[name])}, is {_shown(again.get(name))}")
            break
    same = before["weights"]["sha256"] == after["weights"]["sha256"]
    if not same and not differences:
        differences.append("nothing that the bundles tell differs, so chance is at work: report it")
    return {"same_weights": same, "weights_sha256": after["weights"]["sha256"], "differences": differences}


def _unlike(name: str, one: object, other: object) -> Iterator[tuple[str, object, object]]:
    """The innermost fields in which two documents differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            yield from _unlike(f"{name}.{key}", one.get(key), other.get(key))
    elif one != other:
        yield name, one, other


def _shown(value: object) -> str:
    return "absent" if value is None else json.dumps(value)


def _page(document: Document) -> RenderableType:
    """Render the verdict if it is good, for a bad one is the command's failure; then what differs."""
    same = [Text(f"the same bits: weights {document['weights_sha256']}")] if document["same_weights"] else []
    return Group(*same, *(render.shown(sentence) for sentence in document["differences"]))
