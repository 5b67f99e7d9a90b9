"""Data of figures: the documents of a job and its runs, by student and method."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from service.client.client import Client
from service.client.transport import Document
from service.plots.bins import Calibration, calibrations_of
from workers.methods.names import distinct_names

_CONFIG_FILE = "config.json"
_EVALUATION_FILE = "evaluation.json"


@dataclass
class RunData:
    """One run: its document, the metrics of its epochs, and what its files hold.

    Attributes:
        document: of the API.
        metrics: a line for each epoch.
        calibrations: by split; empty where the run has kept no bins of confidence.
        class_names: in the order of labels; empty where nobody knows them.
        confusions: int64 [classes, classes] by split, rows are labels; empty where no result has them.
    """

    document: Document
    metrics: Sequence[Document]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    confusions: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def result(self) -> Document:
        """result.json; empty while the run has none."""
        return self.document["result"] or {}


@dataclass
class JobData:
    """A job, or one run of it, as figures take it.

    Attributes:
        name: the title of all figures.
        job: the job's document.
        runs: those to draw.
    """

    name: str
    job: Document
    runs: Sequence[RunData]

    @cached_property
    def students(self) -> list[str]:
        """Names of students, in the job's order."""
        return list(dict.fromkeys(run.document["student"] for run in self.runs))

    @cached_property
    def methods(self) -> list[str]:
        """Names of methods, in the job's order: labels, numbered where several methods share one."""
        return list(dict.fromkeys(self._names))

    @cached_property
    def _names(self) -> list[str]:
        """Name of each run's method."""
        return distinct_names([(run.document["method"], run.document.get("method_spec") or {}) for run in self.runs])

    def groups(self) -> Iterator[tuple[str, str, list[RunData]]]:
        """(student, method, its runs of all seeds), those that there are."""
        for student in self.students:
            for method in self.methods:
                pairs = zip(self.runs, self._names, strict=True)
                runs = [run for run, name in pairs if (run.document["student"], name) == (student, method)]
                if runs:
                    yield student, method, runs


def read(client: Client, id: str) -> JobData:
    """Fetch everything that figures of a job, or of one run, need.

    Raises:
        ClientError: there is no such job or run, or the service does not answer.
    """
    documents = [client.run(id)] if id.startswith("run_") else list(client.runs(id))
    job = client.job(documents[0]["job_id"] if documents else id)
    name = job["name"] or job["id"]
    if id.startswith("run_"):
        name = f"{name}: {documents[0]['name']}"
    with tempfile.TemporaryDirectory(prefix="retort-plot-") as folder:
        return JobData(name, job, [_run(client, document, Path(folder)) for document in documents])


def _run(client: Client, document: Document, folder: Path) -> RunData:
    id, result = document["id"], document["result"] or {}
    files = {file["name"] for file in client.artifacts(id)}
    class_names: Sequence[str] = ()
    if _CONFIG_FILE in files:
        path = client.download(id, _CONFIG_FILE, folder / _CONFIG_FILE)
        class_names = json.loads(path.read_text()).get("class_names") or ()
    whole: Document = {}
    if _EVALUATION_FILE in files:
        path = client.download(id, _EVALUATION_FILE, folder / _EVALUATION_FILE)
        whole = json.loads(path.read_text())
    return RunData(
        document=document,
        metrics=client.metrics(id),
        calibrations=calibrations_of(whole),
        class_names=class_names,
        confusions=confusions(result, whole),
    )


def confusions(result: Document, whole: Document) -> dict[str, np.ndarray]:
    """Confusion matrices by split: of result.json, or where it has none (very many classes) of evaluation.json."""
    found: dict[str, np.ndarray] = {}
    for split, document in (result.get("evaluation") or {}).items():
        of_split = (whole.get("splits") or {}).get(split) or {}
        if document.get("confusion") is not None:
            found[split] = np.array(document["confusion"])
        elif of_split.get("confusion_cells"):
            cells_M3 = np.array(of_split["confusion_cells"])
            classes = len(of_split["per_class"])
            found[split] = np.zeros((classes, classes), np.int64)
            found[split][cells_M3[:, 0], cells_M3[:, 1]] = cells_M3[:, 2]
    return found
