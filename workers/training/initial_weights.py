"""First weights of a run that does not begin at random: an earlier run's, or a file's."""

from collections.abc import Callable

from torch import nn

from workers.config.weights_file import check_digest, describe_weights, find_weights
from workers.events import Log
from workers.students.weights import fit_weights, load_weights
from workers.training.run import RunState


def take_initial_weights(run_state: RunState, make_larger: Callable[[], nn.Module]) -> None:
    """Give a student that has not been trained the weights that its job names, and say so in its log.

    Args:
        make_larger: makes the same student for more classes.

    Raises:
        InvalidJob: the file is gone, has changed, or is not of this student.
    """
    student = run_state.task.run.student
    init = student.init
    if init == "random":
        return
    path = find_weights(init, student.name, run_state.task.folders)
    check_digest(init, path)
    fit = fit_weights(path, run_state.network, make_larger())
    load_weights(path, run_state.network, fit)
    if run_state.ema is not None:
        run_state.ema.restart()
    run_state.emit(Log(message=f"begins with the {describe_weights(init, fit.summary)}"))
