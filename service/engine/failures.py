"""Failures of runs and caches: the error that the API shows, and whether a fresh process or a whole GPU may help."""

import structlog

from service.db.models import Json
from service.engine.active_jobs import CACHES, ActiveJob, Work
from service.gpus import GpuWatch
from workers.cluster.outcomes import TaskOutcome

# Errors of inference and of what comes before it that are a teacher's, or of what runs it.
_ABOUT_TEACHER = frozenset(
    {"InvalidTeacher", "ContractViolation", "NotFinite", "OutOfMemory", "SessionLost", "WorkerLost"}
)
log = structlog.get_logger("retort.engine")


def error_of(outcome: TaskOutcome) -> Json:
    """``{"type", "message"}`` of a failure, as its process has reported it."""
    return {"type": outcome.error_type, "message": outcome.message}


def error_of_work(job: ActiveJob, id: str, outcome: TaskOutcome) -> Json:
    """Error of a run, or of the caches, as the API shows it, with what was tried against it."""
    error = error_of(outcome)
    if id == CACHES and outcome.error_type in _ABOUT_TEACHER and job.record.teacher_id:
        name = job.record.teacher.get("name")
        error["message"] = f"teacher {name!r} ({job.record.teacher_id}): {error['message']}"
    tried = None
    if outcome.error_type == "OutOfMemory" and id == CACHES and id in job.whole:
        tried = (
            "It had a whole GPU to itself, after it had shared one: use a GPU with more memory, or the CPU with "
            "training.device 'cpu' or RETORT_GPUS=0"
        )
    elif outcome.error_type == "OutOfMemoryError" and id != CACHES:
        again = ", after it had shared one" if id in job.whole else ""
        tried = f"It had a process, and a whole GPU if it was on one, to itself{again}: use a smaller batch_size"
    elif outcome.error_type == "DeviceUnavailable":
        tried = "It was tried twice, in a fresh process each time"
    return error if tried is None else {**error, "message": f"{error['message']} ({tried})"}


def is_worth_another_device(job: ActiveJob, id: str, outcome: TaskOutcome, gpus: GpuWatch) -> bool:
    """Whether a run, or the caches, ended because a GPU does not work, and for the first time."""
    if outcome.error_type != "DeviceUnavailable":
        return False
    gpus.begin()
    if id in job.without_device:
        return False
    job.without_device.add(id)
    log.warning("no GPU: trying once more in a fresh process", job_id=job.id, what=id, reason=outcome.message)
    return True


def is_worth_a_whole_gpu(job: ActiveJob, outcome: TaskOutcome, gpu_share: float) -> bool:
    """Whether the inference of caches ended because its share of a GPU had too little memory."""
    if outcome.error_type != "OutOfMemory" or not 0.0 < gpu_share < 1.0:
        return False
    job.whole.add(CACHES)
    log.warning("inference out of memory: trying once more with a GPU for itself", reason=outcome.message)
    return True


def can_have_more_memory(work: Work) -> bool:
    """Whether a run that had too little memory shared its process or its GPU."""
    return work.task.actor_group.tasks > 1 or 0.0 < work.task.actor_group.gpu_share < 1.0
