"""Rows of reports: what a run has reached, out of its last metrics and its result."""

from collections.abc import Mapping
from typing import Any, Literal

from service.api.schemas.reports import ReportRow, TeacherResult, TeacherSplit
from service.db.models import JobRecord
from service.db.queries.report_queries import ReportedRun

Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("validation", "test")
# What an epoch's metrics have before the names of those of a split.
_PREFIX: Mapping[Split, str] = {"validation": "validation_", "test": ""}
_EVALUATED = ("top1", "top5", "nll", "ece", "agreement")
_Json = Mapping[str, Any]


def report_row(run: ReportedRun) -> ReportRow:
    """Row of a run; one that is still training has metrics, but no result."""
    result: _Json = run.result or {}
    last: _Json = result.get("last") or run.metrics or {}
    best = best_epoch(result)
    # The metrics of an epoch have both sets of weights; a row tells of those that leave.
    weights = "ema_" if result.get("weights") == "ema" else ""
    environment: _Json = result.get("environment") or {}
    test, validation = (figures(run, split) for split in ("test", "validation"))
    return ReportRow(
        run_id=run.id,
        student=run.student,
        method=run.method,
        seed=run.seed,
        state=run.state,
        accuracy_last=last.get(f"{weights}top1"),
        accuracy_best=best.get(f"validation_{weights}top1"),
        best_epoch=best.get("epoch") or (result.get("best_epoch") if best else None),
        agreement=last.get(f"{weights}agreement"),
        kl_to_teacher=last.get(f"{weights}kl_to_teacher"),
        ece=last.get(f"{weights}ece"),
        nll=last.get(f"{weights}nll"),
        student_temperature=last.get("student_temperature_mean"),
        teacher_temperature=last.get("teacher_temperature_mean"),
        images_per_s=result.get("images_per_s", last.get("images_per_s")),
        seconds=result.get("seconds"),
        device=environment.get("device_name") if environment.get("device") == "cuda" else environment.get("device"),
        accuracy=test["top1"],
        top5=test["top5"],
        validation_accuracy=validation["top1"],
        validation_top5=validation["top5"],
        validation_nll=validation["nll"],
        validation_ece=validation["ece"],
        calibration_temperature=(result.get("calibration") or {}).get("temperature"),
        nll_calibrated=test["nll_calibrated"],
        ece_calibrated=test["ece_calibrated"],
        views_seen=result.get("views_seen"),
        validation_agreement=last.get(f"validation_{weights}agreement"),
        validation_kl_to_teacher=last.get(f"validation_{weights}kl_to_teacher"),
    )


def best_epoch(result: _Json) -> _Json:
    """Metrics of the epoch that was chosen on validation; empty without a validation split.

    Earlier versions have stored as ``best`` the epoch that was best on the test split, which is no choice.
    """
    best: _Json = result.get("best") or {}
    return best if best.get("validation_top1") is not None else {}


def figures(run: ReportedRun, split: Split) -> dict[str, Any]:
    """Figures of the weights that leave, on one split, null where they are not known.

    Returns:
        ``top1``, ``top5`` (0..1), ``nll`` (nats), ``ece``, ``agreement``, ``kl`` (nats), ``nll_calibrated``,
        ``ece_calibrated`` and ``per_class`` (accuracies). Without an evaluation of the weights that leave, those of
        their epoch.
    """
    result: _Json = run.result or {}
    if (evaluation := result.get("evaluation")) is not None:
        found: _Json = evaluation.get(split) or {}
        known = {name: found.get(name) for name in (*_EVALUATED, "kl")}
    else:
        best = result.get("best") if result.get("selected") == "best" else None
        line: _Json = best or result.get("last") or run.metrics or {}
        found, prefix = {}, _PREFIX[split]
        known = {name: line.get(prefix + name) for name in _EVALUATED} | {"kl": line.get(f"{prefix}kl_to_teacher")}
    calibration: _Json = result.get("calibration") or {}
    calibrated: _Json = (calibration if split == "validation" else calibration.get("test")) or {}
    for name in ("nll", "ece"):
        known[f"{name}_calibrated"] = (calibrated.get(name) or {}).get("after")
    return known | {"per_class": found.get("per_class")}


def teacher_result(job: JobRecord) -> TeacherResult:
    """Return the accuracy and metrics of a job's teacher."""
    return TeacherResult(
        accuracy=job.teacher_accuracy,
        views_accuracy=job.teacher_views_accuracy,
        test=_teacher_split(job, "test"),
        validation=_teacher_split(job, "validation"),
    )


def _teacher_split(job: JobRecord, split: Split) -> TeacherSplit | None:
    known: _Json = job.teacher_metrics or {}
    return TeacherSplit.model_validate(known[split]) if known.get(split) else None
