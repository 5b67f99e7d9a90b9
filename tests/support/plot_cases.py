"""Jobs as figures take them, made up: several students, methods and seeds, with evaluations and logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.plots.bins import calibrations_of
from service.plots.data import JobData, RunData, confusions

HOSTILE = "$x^2$ \\frac{1}{2} <b>&amp;</b>\n_kd\x1b[31m %s {0} " + "long" * 50


def make_prediction(seed: int, classes: int, rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right on four of five rows, and too sure of it."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, classes, rows)
    logits_NC = rng.normal(size=(rows, classes)).astype(np.float32)
    logits_NC[np.arange(rows), labels_N] += 2.0
    return 4.0 * logits_NC, labels_N


def make_bins(seed: int) -> dict[str, Any]:
    """A split of evaluation.json: too confident by 0.1, and not at all once calibrated; the lowest bin is empty."""

    def of(error: float) -> dict[str, Any]:
        rows = [0, *np.random.default_rng(seed).integers(1, 99, 14).tolist()]
        confidence = [None, *((n + 0.5) / 15 for n in range(1, 15))]
        accuracy = [None if each is None else max(0.0, each - error) for each in confidence]
        return {"ece": error, "reliability": {"rows": rows, "accuracy": accuracy, "confidence": confidence}}

    return {**of(0.1), "calibrated": of(0.0)}


def make_confusion(logits_NC: np.ndarray, labels_N: np.ndarray) -> list[list[int]]:
    classes = logits_NC.shape[1]
    counts_CC = np.zeros((classes, classes), dtype=int)
    np.add.at(counts_CC, (labels_N, logits_NC.argmax(1)), 1)
    confusion: list[list[int]] = counts_CC.tolist()
    return confusion


def make_run(
    student: str, method: str, seed: int, *, epochs: int = 12, classes: int = 10, names: Sequence[str] = ()
) -> RunData:
    """A run with everything that the contract of results names."""
    rng = np.random.default_rng([seed, sum(map(ord, student + method))])
    lift = 0.04 * (sum(map(ord, method)) % 5)
    metrics = []
    for epoch in range(1, epochs + 1):
        top1 = 0.85 - 0.5 * np.exp(-epoch / 4) + 0.02 * rng.normal() - lift
        line: dict[str, Any] = {
            "epoch": epoch,
            "seconds": 3.0,
            "train_loss": float(2.0 * np.exp(-epoch / 5)),
            "top1": float(top1),
            "validation_top1": float(top1 + 0.01),
            "ece": 0.1,
            "agreement": None if method == "ce" else float(top1),
        }
        if method != "ce":
            line |= {"student_temperature_mean": 4.0 + 0.1 * epoch, "student_temperature_std": 0.5}
            line |= {"teacher_temperature_mean": 3.0, "teacher_temperature_std": 0.3}
        metrics.append(line)
    predictions = {split: make_prediction(seed + n, classes) for n, split in enumerate(("validation", "test"))}
    evaluation = {split: {"confusion": make_confusion(*prediction)} for split, prediction in predictions.items()}
    result = {"last": metrics[-1], "evaluation": evaluation, "calibration": {"temperature": 4.0}}
    document = {
        "id": f"run_{seed}",
        "job_id": "job_1",
        "name": f"{student}/{method}/{seed}",
        "student": student,
        "method": method,
        "seed": seed,
        "state": "succeeded",
        "epoch": epochs,
        "result": result,
    }
    return RunData(
        document=document,
        metrics=metrics,
        calibrations=calibrations_of({"splits": {split: make_bins(seed + n) for n, split in enumerate(predictions)}}),
        class_names=names or [f"class {n}" for n in range(classes)],
        confusions=confusions(result, {}),
    )


def make_job(
    name: str = "digits, three methods",
    students: Sequence[str] = ("resnet8",),
    methods: Sequence[str] = ("ce", "kd", "normkd"),
    seeds: int = 3,
    **run: Any,  # noqa: ANN401  # as ``make_run`` has them
) -> JobData:
    """A job of students x methods x seeds."""
    runs = [make_run(s, m, seed, **run) for s in students for m in methods for seed in range(seeds)]
    job = {"id": "job_1", "name": name, "teacher_accuracy": 0.9, "created_at": "2026-01-01T00:00:00Z"}
    return JobData(name, job, runs)
