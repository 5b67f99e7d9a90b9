"""More epochs for a run that has ended: what it goes on from, and when its first epochs are those of a longer run.

A run of E epochs that goes on to N ends with the weights of a run of N epochs only if nothing in its first E epochs
depends on how many there are in all. Where something does, the extension is refused.
"""

from typing import Annotated

from pydantic import Field

from workers.config.training import StepSchedule, Training
from workers.errors import InvalidJob
from workers.methods.papers.base import Preset
from workers.methods.policies.expression import Expression
from workers.spec import Spec


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
    if trained < before.epochs:
        raise InvalidJob(
            f"the run was ended by early stopping after {trained} of {before.epochs} epochs, and would be again: post "
            "a job without early_stopping, or with more patience"
        )
    if before.keep == "best" or before.leaves_average:
        left = "the best epoch's weights" if before.keep == "best" else "averaged weights"
        raise InvalidJob(
            f"the run has left {left}, and its last checkpoint holds those, not the ones that it would go on with: "
            f"post a job of {after.epochs} epochs, whose caches are there"
        )
    readers = [term.policy for term in method.expand().terms if isinstance(term.policy, Expression)]
    if any("epochs" in one.names for policy in readers for one in policy.parsed.values()):
        raise InvalidJob(
            f"an expression of method {method.label!r} reads `epochs`, which were {before.epochs} and would be "
            f"{after.epochs}: post a job of {after.epochs} epochs, whose caches are there"
        )
    _check_schedule(before, after)


def _check_schedule(before: Training, after: Training) -> None:
    old, new = before.schedule, after.schedule
    if not (isinstance(old, StepSchedule) and isinstance(new, StepSchedule)):
        kind = new.kind if isinstance(old, StepSchedule) else old.kind
        raise InvalidJob(
            f"schedule {kind!r} of {after.epochs} epochs has other learning rates from the first on than the run had "
            f"in its {before.epochs}: post a job of {after.epochs} epochs, whose caches are there. Only steps "
            "(`step`, without milestones a constant rate) can go on"
        )
    passed, would = (
        [epoch for epoch in schedule.boundaries(epochs) if epoch < before.epochs]
        for schedule, epochs in ((old, before.epochs), (new, after.epochs))
    )
    if passed != would or (passed and old.gamma != new.gamma):
        # Times as many epochs as there can be, what is cut off stays below what ``boundaries`` forgives.
        same = [round(epoch / after.epochs, 15) for epoch in passed]
        raise InvalidJob(
            f"the learning rate of the run has stepped after epochs {passed or 'none'} by {old.gamma:g}, and in "
            f"{after.epochs} epochs it would after {would or 'none'} of the first {before.epochs} by {new.gamma:g}: "
            f'state `"schedule": {{"kind": "step", "milestones": {same}, "gamma": {old.gamma:g}}}`, perhaps with later '
            f"milestones, or post a job of {after.epochs} epochs, whose caches are there"
        )
