"""Cost of a job before it is posted: rows, bytes, forward passes, seconds by measured times, break-even.

Made from the database, the dataset's listing and the caches' descriptions; no picture is decoded and no teacher run.
"""

from sqlalchemy import func, select

from service.api.dependencies import Context
from service.api.job_checks import CheckedJob, CheckedTeacher, classes_of
from service.api.schemas.costs import BreakEven, CacheCost, Cost, ForwardsCost, OtherWork, SecondsCost
from service.db.database import Database
from service.db.models import JobRecord, TeacherRecord
from service.db.states import LIVE
from service.estimates.caches import CachesOf, ExpectedCache, ExpectedCaches, expected_caches, expected_combination
from service.estimates.history import read_measured
from service.estimates.measured import MeasuredTimes
from service.estimates.rates import InferenceRate, WantedTeacher, inference_rate, rate_of_several
from service.estimates.workload import JobRows, Slots, rows_of, training_s, workload_of
from workers.config.job import Plan
from workers.config.teacher import Preprocessing
from workers.teacher.cache_plan import KnownTeacher
from workers.teacher.forwards import forwards_of_live_teacher

_NO_SLOTS = "no engine has led here yet, so it is not known how many runs fit at once"
_TOO_LARGE = "a run needs more slots than the engine has"


def cost_of(checked: CheckedJob, context: Context) -> Cost:
    """Estimate a job that was checked."""
    plan = checked.plan
    by_teacher, combined = _expected(checked, context)
    caches = combined or by_teacher[0]
    samples = {str(split): count for split, count in caches.samples.items()}
    rows, measured = rows_of(plan, samples), read_measured(context.database)
    # Of combined rows that are all there no teacher is asked again.
    there = {cache.split for cache in (combined.caches if combined else ()) if cache.rows_cached == cache.rows}
    to_run = [
        sum(cache.rows - cache.rows_cached for cache in each.caches if cache.split not in there) for each in by_teacher
    ]
    rates = [
        _rate(plan, each.record, measured, infers=rows > 0) for each, rows in zip(checked.teachers, to_run, strict=True)
    ]
    rate = rates[0] if len(rates) == 1 else rate_of_several(rates, to_run)
    capacity = context.records.capacity()
    slots = None if capacity is None else Slots.model_validate(capacity)
    needed = sum(cache.rows for each in by_teacher for cache in each.caches)
    return Cost(
        samples=samples,
        caches=[
            *(
                _cache(cache, teacher.record.id or None)
                for teacher, each in zip(checked.teachers, by_teacher, strict=True)
                for cache in each.caches
            ),
            *(_cache(cache, None) for cache in (combined.caches if combined else ())),
        ],
        forwards=ForwardsCost(
            needed=needed,
            cached=needed - sum(to_run),
            to_run=sum(to_run),
            cached_known_by=caches.known_by,
        ),
        seconds=_seconds(plan, rows, measured, slots, rate=rate, to_run=sum(to_run)),
        break_even=_break_even(plan, rows, sum(to_run), rate, teachers=len(rates)),
        other_work=_other_work(context.database),
    )


def _expected(checked: CheckedJob, context: Context) -> tuple[list[ExpectedCaches], ExpectedCaches | None]:
    """Caches of each teacher, and those that are combined of them; None where there is one teacher."""
    datasets, catalog = context.settings.datasets_dir, context.catalog
    known = [_known(each, checked) for each in checked.teachers]
    if len(known) == 1:
        return [expected_caches(checked.plan, known[0], checked.source, datasets=datasets, catalog=catalog)], None
    weighted = [(teacher, each.weight) for teacher, each in zip(known, checked.teachers, strict=True)]
    return expected_combination(checked.plan, weighted, checked.source, datasets=datasets, catalog=catalog)


def _known(checked: CheckedTeacher, job: CheckedJob) -> CachesOf:
    if checked.caches:
        return checked.caches
    teacher = checked.record
    return KnownTeacher(
        sha256=teacher.sha256,
        output=teacher.output,
        output_kind="logits",
        classes=job.source.classes or classes_of(teacher) or 0,
        preprocessing=Preprocessing.model_validate(teacher.preprocessing),
        columns=None if checked.classes is None else checked.classes.columns,
        inputs=(teacher.reading or {}).get("input_values", {}),
    )


def _cache(cache: ExpectedCache, teacher: str | None) -> CacheCost:
    """Document of a cache; ``teacher`` is None of a combined one, and of imported logits."""
    names = CacheCost.model_fields.keys() - {"teacher"}
    return CacheCost(teacher=teacher, **{name: getattr(cache, name) for name in names})


def _rate(plan: Plan, teacher: TeacherRecord, measured: MeasuredTimes, *, infers: bool) -> InferenceRate | None:
    document = plan.model_dump(mode="json", include={"dataset", "views"})
    wanted = WantedTeacher.of(teacher.sha256, teacher.size_bytes, teacher.preprocessing, document)
    return inference_rate(measured, wanted, infers=infers)


def _seconds(
    plan: Plan, rows: JobRows, measured: MeasuredTimes, slots: Slots | None, *, rate: InferenceRate | None, to_run: int
) -> SecondsCost:
    measured_by, missing = list[str](), list[str]()
    inference = 0.0 if not to_run else None
    if rate is None:
        missing.append("no job has ever completed its caches here")
    else:
        measured_by.append(f"caches: {rate.basis}")
        if to_run and rate.rows_per_s is None:
            missing.append("neither this teacher nor one of about its size and the same input was ever run here")
        elif to_run and rate.rows_per_s is not None:
            inference = to_run / rate.rows_per_s
    training: float | None = 0.0
    if not plan.evaluate:
        workload = workload_of(plan, rows, measured, slots)
        training = None if slots is None else training_s(plan, workload, slots)
        measured_by += workload.basis
        missing += workload.missing
        if slots is None:
            missing.append(_NO_SLOTS)
        elif training is None and not workload.missing:
            missing.append(_TOO_LARGE)
    preparing = None if rate is None else rate.beside_s
    parts = [preparing, inference, training]
    known = [part for part in parts if part is not None]
    return SecondsCost(
        preparing=preparing,
        inference=inference,
        training=training,
        total=sum(known) if len(known) == len(parts) else None,
        measured_by=measured_by,
        missing=missing,
    )


def _break_even(plan: Plan, rows: JobRows, to_run: int, rate: InferenceRate | None, *, teachers: int) -> BreakEven:
    distilling = sum(run.method.expand().needs_teacher for run in plan.runs())
    live = teachers * forwards_of_live_teacher(plan, rows.trained, rows.measured)
    # In the mean over the runs: a method that compares two views needs two passes.
    runs = to_run * distilling / live if live else None
    per_s = None if rate is None else rate.rows_per_s
    return BreakEven(
        live_forwards=live,
        epochs=None if runs is None else runs * plan.training.epochs,
        runs=runs,
        live_seconds=None if per_s is None else live / per_s,
        saved_seconds=None if per_s is None else (live - to_run) / per_s,
    )


def _other_work(database: Database) -> OtherWork:
    """Live jobs, and the end of the last one where all of them have an expected end."""
    with database.read() as session:
        count = session.scalar(select(func.count()).select_from(JobRecord).where(JobRecord.state.in_(LIVE))) or 0
        etas = session.scalars(select(JobRecord.eta).where(JobRecord.state.in_(LIVE)).limit(1000)).all()
    ends = [eta["expected_at"] for eta in etas if eta]
    return OtherWork.model_validate({"jobs": count, "expected_at": max(ends) if ends and len(ends) == count else None})
