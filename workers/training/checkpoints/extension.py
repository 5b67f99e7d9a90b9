"""Checkpoint of a run that has ended, for one that goes on from it for more epochs."""

from typing import Any

from workers.config.task import ExtendedRun, TrainingTask
from workers.errors import InvalidJob
from workers.training.checkpoints.checkpoint import checkpoint_identity, load_checkpoint


def load_extended(task: TrainingTask, extended: ExtendedRun) -> dict[str, Any]:
    """The last checkpoint of the run that a task extends, as one that is not done yet.

    Raises:
        InvalidJob: it is gone, damaged, or of another run: nothing is trained from the first epoch in its place.
    """
    run = task.run.model_copy(update={"index": extended.index})
    before = task.model_copy(update={"run": run, "training": extended.training, "views": extended.views})
    state = load_checkpoint((extended.folder,), checkpoint_identity(before))
    if state is None or state["epoch"] != extended.training.epochs:
        raise InvalidJob(
            f"the last checkpoint of run {extended.run} is gone, damaged or by another version: post a job of "
            f"{task.training.epochs} epochs"
        )
    return {**state, "final": None}
