"""Demo (``retort demo``): a teacher, a service, two jobs, in a few minutes on two cores.

1. The service starts, unless one is there already.
2. Meanwhile a small network is trained on all of scikit-learn's digits and exported to ONNX: the
   part that users bring along.
3. From here on it is a client like any other, HTTP alone: upload the teacher, post a job of one
   student x seven methods x three seeds, follow it, show the results.
4. A second job trains another student from the same logits and runs the teacher not once.

The students get ten labelled pictures of each class, and ten more are held out, on which each student's
temperature is fitted. With so few, the teacher's logits are worth six to nine points of accuracy, several
times the spread over seeds; with all 1,442 pictures cross-entropy alone is at 98.6 %, and nothing is left to gain. The
distillation methods are within each other's noise.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from service.cli import render
from service.cli.job_commands.follow import follow
from service.cli.processes.background_service import BackgroundService, answers_ready
from service.client.client import Client
from service.client.errors import ServiceUnreachable
from service.client.transport import Document
from service.errors import ServiceError
from workers.config.schedules import CosineSchedule
from workers.config.training import AdamW, Training
from workers.config.views import CropFlip, Views
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.holdout_spec import Holdout
from workers.events import Epoch
from workers.pipeline import SupervisedModel, train_supervised

TEACHER = "cnn_m"
STUDENT = "cnn_s"
METHODS = ("ce", "kd", "dtkd", "normkd", "rld", "lud", "atkd")
SECOND_STUDENT = "resnet8"
SECOND_METHODS = ("ce", "kd", "dtkd", "normkd")
SEEDS = (0, 1, 2)

# A digit moved by one pixel is the same digit; mirrored it is not.
VIEWS = Views(augmentation=CropFlip(pad=1, flip=False), count=20)
TEACHER_TRAINING = Training(epochs=8, optimizer=AdamW(lr=3e-3), schedule=CosineSchedule())
LABELS_PER_CLASS = 10
DATASET = DigitsDataset(train_per_class=2 * LABELS_PER_CLASS)
VALIDATION = Holdout(holdout=0.5)
TRAINING = Training(epochs=40, batch_size=25, optimizer=AdamW(lr=1e-2), schedule=CosineSchedule())

_PATIENCE_S = 15.0


class DemoFailed(ServiceError, RuntimeError):
    """A job of the demo did not succeed; its error is in the message."""


def run_demo(connect: Callable[[str | None], Client], data_dir: Path | None, *, keep: bool, hold: bool) -> None:
    """Run the demo: the whole path on this machine.

    Args:
        connect: gives a client for an address, or for the one that the user named (None).
        data_dir: where the service writes if one has to be started; None is a new temporary one.
        keep: leave a service that was started here running.
        hold: let it run until Ctrl-C, for somebody who looks at its page.

    Raises:
        DemoFailed, ServiceEnded, ClientError: a step failed; a service started here is ended.
    """
    started = time.monotonic()
    console = render.console()
    folder = (data_dir or Path(tempfile.mkdtemp(prefix="retort-demo-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _service(connect, folder, keep, console) as (client, own):
        teacher = _train_teacher(folder, console)
        if own is not None:
            own.wait_ready()
        uploaded = client.upload_teacher(
            teacher.onnx_path,
            name=f"digits {TEACHER}",
            preprocessing=teacher.preprocessing.model_dump(mode="json"),
        )
        size = f"{len(METHODS)} methods x {len(SEEDS)} seeds"
        _heading(console, f"Job 1: {STUDENT} x {size}, {LABELS_PER_CLASS} labels a class, all over HTTP")
        _do_job(client, own, _job(uploaded, STUDENT, METHODS), console)
        _heading(console, "Job 2: another student on the same teacher, from its cached logits")
        second = _do_job(client, own, _job(uploaded, SECOND_STUDENT, SECOND_METHODS), console)
        _heading(console, f"Done in {render.duration(time.monotonic() - started)}")
        console.print(render.facts(_whereabouts(client, own, folder, job=second, keep=keep or hold)))
        if hold and own is not None:
            _hold(own, console)


@contextmanager
def _service(
    connect: Callable[[str | None], Client], folder: Path, keep: bool, console: Console
) -> Iterator[tuple[Client, BackgroundService | None]]:
    with connect(None) as client:
        if answers_ready(client):
            _heading(console, f"Using the service at {client.base_url}")
            yield client, None
            return
    own = BackgroundService(folder, folder, outlive=keep)
    _heading(console, f"Starting a service at {own.url}, data in {folder}")
    with own, connect(own.url) as client:
        yield client, own


def _hold(own: BackgroundService, console: Console) -> None:
    """Wait for Ctrl-C while the service runs. Raises ServiceEnded."""
    console.print(f"\nThe service goes on running: open {own.url} in a browser. Ctrl-C ends it.")
    # Its end is no error of the demo, which is over.
    with contextlib.suppress(KeyboardInterrupt):
        own.wait()
        own.check()


def _train_teacher(folder: Path, console: Console) -> SupervisedModel:
    _heading(console, f"A teacher: {TEACHER}, trained on scikit-learn's handwritten digits")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("epochs", total=TEACHER_TRAINING.epochs, note="")

        def show(event: object) -> None:
            if isinstance(event, Epoch):
                note = f"{event.epoch}/{event.epochs}, top-1 {render.percent(event.metrics['top1'])}"
                progress.update(task, completed=event.epoch, note=note)

        return train_supervised(
            DigitsDataset(),
            TEACHER,
            TEACHER_TRAINING,
            data_root=folder,
            work_dir=folder / "teacher",
            out_dir=folder / "teacher",
            # The service is starting meanwhile; threads that wait for each other would be slow.
            threads=1,
            views=VIEWS,
            emit=show,
        )


def _job(teacher: Document, student: str, methods: tuple[str, ...]) -> dict[str, object]:
    return {
        "name": f"digits {student}",
        "teacher": teacher["id"],
        "dataset": DATASET.model_dump(mode="json"),
        "validation": VALIDATION.model_dump(mode="json"),
        "views": VIEWS.model_dump(mode="json"),
        "students": [student],
        "methods": list(methods),
        "seeds": list(SEEDS),
        # All methods of a seed in one process: starting one takes longer than training them here.
        "group_size": len(methods),
        "training": TRAINING.model_dump(mode="json"),
    }


def _do_job(client: Client, own: BackgroundService | None, job: Mapping[str, object], console: Console) -> Document:
    posted = client.submit(job)
    try:
        ended = follow(client, posted["id"], console, patience_s=_PATIENCE_S)
    except ServiceUnreachable:
        if own is not None:
            own.check()
        raise
    if ended["state"] != "succeeded":
        message = (ended["error"] or {}).get("message", "no reason given")
        raise DemoFailed(f"{ended['id']} {ended['state']}: {message}")
    report = client.report(posted["id"])
    console.print(Padding(summary(report), (1, 0, 0, 0), expand=False))
    console.print(
        f"± is the standard deviation over {len(SEEDS)} seeds; fitted: at the temperature fitted on validation."
    )
    console.print(Padding(render.totals(report), (1, 0), expand=False))
    return ended


def summary(report: Document) -> Table:
    """The results of a job, a line for each student and method: means over the seeds, with standard deviations."""
    groups: dict[tuple[str, str], list[Document]] = {}
    for row in report["rows"]:
        groups.setdefault((row["student"], row["method"]), []).append(row)
    headers = (
        "student",
        "method",
        "top-1>",
        "agreement>",
        "ECE>",
        "fitted>",
        "T student>",
        "T teacher>",
        "seconds>",
    )
    lines = (
        (
            student,
            method,
            *(_spread(rows, name) for name in ("accuracy_last", "agreement", "ece", "ece_calibrated")),
            *(render.number(_mean(rows, name)) for name in ("student_temperature", "teacher_temperature")),
            render.number(_mean(rows, "seconds"), 1),
        )
        for (student, method), rows in groups.items()
    )
    return render.table(headers, lines)


def _mean(rows: Sequence[Document], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.fmean(values) if values else None


def _spread(rows: Sequence[Document], name: str) -> str:
    values = [100 * row[name] for row in rows]
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"


def _heading(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")


def _whereabouts(
    client: Client, own: BackgroundService | None, folder: Path, job: Document, keep: bool
) -> dict[str, str]:
    """Places of the results, by what is still running afterwards."""
    run_id = job["run_ids"][0]
    if own is None or keep:
        url = client.base_url
        return {
            "page": url,
            "artifacts": f"retort --url {url} download {run_id}",
            "results": f"retort --url {url} report {job['id']}",
            "API docs": f"{url}/docs",
            **({} if own is None else {"to stop it": f"kill {own.pid}", "its log": str(own.log_path)}),
        }
    return {
        "artifacts": f"{folder / 'jobs'}, a folder for each run",
        "page": f"`retort serve --data-dir {folder}`, then http://127.0.0.1:8765",
    }
