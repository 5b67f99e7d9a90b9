"""More epochs for a run that has ended: what it goes on from, and when its first epochs are those of a longer run.

A run of E epochs that goes on to N ends with the weights of a run of N epochs only if nothing in its first E epochs
depends on how many there are in all. Where something does, the extension is refused; where that is the schedule, it is
not if the request states a learning rate: the longer run is then one with a warm restart after E epochs.
"""

from typing import Annotated

from pydantic import Field

from workers.config.schedules import RESTARTS_MAX, Restart, Schedule, StepSchedule
from workers.config.training import Training
from workers.errors import InvalidJob
from workers.methods.papers.base import Preset
from workers.methods.policies.expression import Expression
from workers.spec import Spec

# The way to insist where no longer run has the same first epochs.
_FROM_ITS_WEIGHTS = ', or one whose student begins with what this run has left: `"init": {"run": ID}`'


class Extension(Spec):
    """Run whose last checkpoint another one goes on from.

    Attributes:
        run: its id.
        index: of it among the runs of its job, from 0.
        training: its options, with the epochs that it has trained.
        checkpoint: its file, relative to the data directory.
    """

    run: str
    index: Annotated[int, Field(strict=True, ge=0)] = 0
    training: Training
    checkpoint: str


def extended_training(
    before: Training, epochs: int, *, schedule: Schedule | None, learning_rate: float | None
) -> Training:
    """Options of a run that goes on to more epochs; not checked yet, see ``check_extension``.

    Args:
        before: options of the run that has ended.
        epochs: all of them.
        schedule: of all epochs since the last restart, or, with a learning rate, of the added ones; None is the run's.
        learning_rate: of a warm restart before the added epochs; None goes on in the schedule that there is.
    """
    after = before.model_copy(update={"epochs": epochs})
    last = before.phases[-1]
    if learning_rate is not None:
        restart = Restart(after_epochs=before.epochs, learning_rate=learning_rate, schedule=schedule or last.schedule)
        return after.model_copy(update={"restarts": (*before.restarts, restart)})
    if schedule is None:
        return after
    if not before.restarts:
        return after.model_copy(update={"schedule": schedule})
    *earlier, newest = before.restarts
    return after.model_copy(update={"restarts": (*earlier, newest.model_copy(update={"schedule": schedule}))})


def check_extension(before: Training, after: Training, method: Preset, trained: int) -> None:
    """Refuse more epochs for a run where a run of as many from the start would end with other weights.

    Args:
        before: options of the run that has ended.
        after: the same for all epochs.
        trained: epochs that it has trained.

    Raises:
        InvalidJob: saying what depends on the number of epochs, or that there are no more than before.
    """
    if after.epochs <= before.epochs:
        raise InvalidJob(
            f"epochs is {after.epochs}, and the run has {before.epochs}: it is the number of all epochs, those before "
            f"included; give more than {before.epochs}"
        )
    if len(after.restarts) > RESTARTS_MAX:
        raise InvalidJob(f"the run would have {len(after.restarts)} restarts, at most {RESTARTS_MAX} are allowed")
    if trained < before.epochs:
        raise InvalidJob(
            f"the run was ended by early stopping after {trained} of {before.epochs} epochs, and would be again: post "
            f"a job without early_stopping, or with more patience{_FROM_ITS_WEIGHTS}"
        )
    if before.keep == "best" or before.leaves_average:
        left = "the best epoch's weights" if before.keep == "best" else "averaged weights"
        raise InvalidJob(
            f"the run has left {left}, and its last checkpoint holds those, not the ones that it would go on with: "
            f"post a job of {after.epochs} epochs, whose caches are there{_FROM_ITS_WEIGHTS}"
        )
    readers = [term.policy for term in method.expand().terms if isinstance(term.policy, Expression)]
    if any("epochs" in one.names for policy in readers for one in policy.parsed.values()):
        raise InvalidJob(
            f"an expression of method {method.label!r} reads `epochs`, which were {before.epochs} and would be "
            f"{after.epochs}: post a job of {after.epochs} epochs, whose caches are there{_FROM_ITS_WEIGHTS}"
        )
    if len(after.restarts) == len(before.restarts):
        _check_schedule(before, after)


def _check_schedule(before: Training, after: Training) -> None:
    """Refuse a last phase that has other learning rates in the epochs that were trained. Raises InvalidJob."""
    old, new = before.phases[-1], after.phases[-1]
    restart = (
        "state a `learning_rate`, and the added epochs are a warm restart from it, with `schedule` as theirs alone, or "
        f"post a job of {after.epochs} epochs, whose caches are there"
    )
    if not (isinstance(old.schedule, StepSchedule) and isinstance(new.schedule, StepSchedule)):
        kind = new.schedule.kind if isinstance(old.schedule, StepSchedule) else old.schedule.kind
        raise InvalidJob(
            f"schedule {kind!r} of {after.epochs} epochs has other learning rates from the first on than the run had "
            f"in its {before.epochs}, and only steps (`step`, without milestones a constant rate) can go on: {restart}"
        )
    passed, would = (
        [epoch for epoch in phase.schedule.boundaries(phase.end - phase.begin) if epoch < old.end - old.begin]
        for phase in (old, new)
        if isinstance(phase.schedule, StepSchedule)
    )
    if passed != would or (passed and old.schedule.gamma != new.schedule.gamma):
        # Times as many epochs as there can be, what is cut off stays below what ``boundaries`` forgives.
        same = [round(epoch / (new.end - new.begin), 15) for epoch in passed]
        since = f"of its last restart, after {old.begin}, " if old.begin else ""
        raise InvalidJob(
            f"the learning rate of the run has stepped after epochs {passed or 'none'} {since}by "
            f"{old.schedule.gamma:g}, and in {after.epochs} epochs it would after {would or 'none'} of the first "
            f'{before.epochs} by {new.schedule.gamma:g}: state `"schedule": {{"kind": "step", "milestones": {same}, '
            f'"gamma": {old.schedule.gamma:g}}}`, perhaps with later milestones; or {restart}'
        )
