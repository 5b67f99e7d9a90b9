"""Per-sample tests: which rows two runs get right, by the logits that they have kept (``logits.safetensors``)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.api.reports import statistics
from service.api.reports.groups import GroupKey, SeedGroup
from service.api.reports.rows import SPLITS, Split
from service.api.schemas.reports import SampleTest
from service.db.models import ArtifactRecord
from service.db.queries.report_queries import ReportedRun
from service.errors import Conflict, InvalidRequest
from workers.texts import listed

LOGITS = "logits.safetensors"
# Of all files that one report reads: two seconds of two cores.
LOGITS_BYTES_MAX = 1 << 30
# Logits that are compared at once: 16 MiB of float32.
_CELLS = 1 << 22


@dataclass(frozen=True)
class Predictions:
    """Which rows of a split a run gets right.

    Attributes:
        labels_sha256: of the labels; the labels of a thousand runs would fill the memory.
        correct_N: bool [labelled rows]; of equal logits the first class counts. They were rounded to float16.
    """

    labels_sha256: str
    correct_N: npt.NDArray[np.bool_]


def sample_tests(
    groups: Sequence[SeedGroup], files: Sequence[ArtifactRecord], path_of: Callable[[ArtifactRecord], Path]
) -> tuple[dict[tuple[GroupKey, Split], list[SampleTest]], list[str]]:
    """McNemar's exact test of every run with its baseline of the same seed, on each split that both have kept.

    Args:
        files: ``logits.safetensors`` of these runs' newest attempts.
        path_of: where a file lies.

    Returns:
        The tests by group and split, and a sentence about runs that have kept no logits.

    Raises:
        InvalidRequest: the files have more than ``LOGITS_BYTES_MAX`` bytes.
        Conflict: a file cannot be read, or two runs were measured on different rows.
    """
    by_run = {file.run_id: file for file in files}
    pairs = [(group, *pair) for group in groups for pair in group.pairs()]
    needed = {run.id: None for _, *pair in pairs for run in pair}
    size_bytes = sum(by_run[run_id].size_bytes for run_id in needed if run_id in by_run)
    if size_bytes > LOGITS_BYTES_MAX:
        raise InvalidRequest(
            f"the kept logits of these runs have {size_bytes} bytes, at most {LOGITS_BYTES_MAX} are read for one "
            "report: ask without paired=samples, or download the artifacts",
            "#/paired",
        )
    known = {run_id: read_predictions(path_of(by_run[run_id]), run_id) for run_id in needed if run_id in by_run}
    tests: dict[tuple[GroupKey, Split], list[SampleTest]] = {}
    for group, baseline, run in pairs:
        if baseline.id in known and run.id in known:
            for split, test in _tests(baseline, run, known[baseline.id], known[run.id]):
                tests.setdefault((group.key, split), []).append(test)
    without = [run_id for run_id in needed if run_id not in by_run]
    notes = (
        [f"{listed(without)} has kept no logits (training.keep_logits): no test per sample there"] if without else []
    )
    return tests, notes


def _tests(
    baseline: ReportedRun,
    run: ReportedRun,
    known_of_baseline: dict[Split, Predictions],
    known: dict[Split, Predictions],
) -> Iterator[tuple[Split, SampleTest]]:
    for split in SPLITS:
        if split not in known or split not in known_of_baseline:
            continue
        one, other = known_of_baseline[split], known[split]
        if one.labels_sha256 != other.labels_sha256:
            raise Conflict(
                f"{baseline.id} and {run.id} have kept logits of different {split} rows ({len(one.correct_N)} and "
                f"{len(other.correct_N)}, with other labels): rows cannot be paired; ask without paired=samples"
            )
        if not len(one.correct_N):
            continue
        only_baseline, only_method = statistics.discordant(one.correct_N, other.correct_N)
        yield (
            split,
            SampleTest(
                seed=run.seed,
                run_id=run.id,
                baseline_run_id=baseline.id,
                rows=len(one.correct_N),
                only_baseline=only_baseline,
                only_method=only_method,
                p_value=statistics.mcnemar(only_baseline, only_method),
            ),
        )


def read_predictions(path: Path, run_id: str) -> dict[Split, Predictions]:
    """Predictions of a run on the splits whose logits it has kept, without torch.

    Raises:
        Conflict: the file is no such file.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[Split, Predictions] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for split in SPLITS:
                if split in names:
                    labels_N = file.get_tensor(f"{split}_labels")
                    digest = hashlib.sha256(labels_N.astype("<i8").tobytes()).hexdigest()
                    found[split] = Predictions(digest, _correct(file.get_slice(split), labels_N))
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise Conflict(f"{LOGITS} of {run_id} cannot be read: {error}") from error
    return found


def _correct(
    logits: Any,  # noqa: ANN401  # a slice of safetensors, which has no types
    labels_N: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Compare the largest of each row's logits [rows, classes], a slice of a file, with the labels.

    Only of the rows that have a label.
    """
    shape, dtype = logits.get_shape(), logits.get_dtype()
    are_labels = labels_N.dtype.kind == "i" and labels_N.shape == tuple(shape[:1])
    if len(shape) != 2 or dtype not in ("F16", "F32") or not are_labels:
        raise ValueError(
            f"it holds {dtype} {shape} with labels {labels_N.dtype} {labels_N.shape}; logits are F16 or F32 "
            "[rows, classes], labels int64 [rows]"
        )
    parts, step = [], max(1, _CELLS // max(1, shape[1]))
    for start in range(0, shape[0], step):
        end = min(start + step, shape[0])
        parts.append(logits[start:end].astype(np.float32).argmax(axis=1) == labels_N[start:end])
    return np.concatenate(parts)[labels_N >= 0] if parts else np.zeros(0, dtype=np.bool_)
