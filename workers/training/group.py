"""Runs of one process that train on the same batches: who is still there, how others ended, what is asked of each.

What is raised on behalf of one run ends that run alone (``Group.on_behalf_of``). Stop and pause are obeyed between two
steps, and while a batch is waited for.
"""

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence

import torch
from structlog.contextvars import bound_contextvars

from workers.errors import Paused, Stopped
from workers.logs import ids_of
from workers.training.cuda_graphs.step_graph import StepGraph
from workers.training.cuda_graphs.step_streams import StepStreams
from workers.training.feed.batches import LoadedBatch, NotWanted
from workers.training.metrics.epoch_sums import Reading
from workers.training.not_finite import ComputeStep, check_every, explain_not_finite
from workers.training.run import RunState
from workers.training.run_handle import RunHandle, Signal
from workers.training.setting import Setting

Ended = tuple[int, "dict[str, object] | Exception"]
"""Which run of the group, and result.json or why there is none."""


class Group:
    """The runs that are still training, what is recorded of their steps, and how the others have ended.

    Args:
        compute: a step, to be recorded where graphs are tried, and computed again where it was not finite.
    """

    def __init__(self, handles: Sequence[RunHandle], setting: Setting, compute: ComputeStep) -> None:
        self.run_states: list[RunState] = []
        self._setting = setting
        self._compute = compute
        self._graphs: dict[int, StepGraph] = {}
        self._streams = StepStreams(len(handles), setting.device)
        self._ids = [ids_of(handle.task.folder) for handle in handles]
        self._ended: list[Ended] = []

    # ---------------------------------------------------------------------------------------- who is there, who ended

    @contextlib.contextmanager
    def on_behalf_of(self, place: int) -> Iterator[None]:
        """Run a block for one run alone: what is raised inside ends that run, and what is logged carries its ids."""
        try:
            with bound_contextvars(**self._ids[place]):
                yield
        except Exception as error:
            _clear_frames(error)
            self.end(place, error)

    def add(self, run_state: RunState) -> None:
        self.run_states.append(run_state)
        no_graph = self._setting.no_graph
        if no_graph is None:
            self._graphs[run_state.place] = StepGraph(run_state, self._compute)
        # A run that was resumed when all was trained keeps what was said of its training.
        run_state.environment.setdefault("cuda_graph", f"off: {no_graph or 'too few steps'}")

    def end(self, place: int, how: dict[str, object] | Exception) -> None:
        """Note the end, and free the memory: the others, and other processes, may need it."""
        self._streams.close(place)
        graph = self._graphs.pop(place, None)
        if graph is not None:
            # An error raised in its turn, or the loop, may still refer to it.
            graph.forget()
        for run_state in [run_state for run_state in self.run_states if run_state.place == place]:
            self.run_states.remove(run_state)
            run_state.release()
        torch.cuda.empty_cache()
        self._ended.append((place, how))

    def take_ended(self) -> list[Ended]:
        taken, self._ended = self._ended, []
        return taken

    def still_there(self, run_states: Sequence[RunState]) -> list[RunState]:
        return [run_state for run_state in run_states if run_state in self.run_states]

    # -------------------------------------------------------------------------------------------------------- batches

    def obey_while_waiting(self, behind: Sequence[RunState]) -> None:
        """Obey signals while a batch is waited for; where several processes train one student, stop alone.

        Raises:
            NotWanted: all runs that were to train on that batch have ended.
        """
        for run_state in [*self.run_states]:
            with self.on_behalf_of(run_state.place):
                if run_state.training.actors == 1:
                    self.obey_signal(run_state)
                elif run_state.signal() is Signal.STOP:
                    raise Stopped(f"run {run_state.task.run.name!r} was stopped while it waited for pictures")
        if not self.still_there(behind):
            raise NotWanted

    # ---------------------------------------------------------------------------------------------------------- steps

    def fork(self) -> None:
        """Let the runs' steps begin: the batch is made."""
        self._streams.fork()

    def join(self) -> None:
        """Order what is launched from here on after the steps of all runs."""
        self._streams.join()

    @contextlib.contextmanager
    def turn_of(self, run_state: RunState, loaded: LoadedBatch) -> Iterator[StepGraph | None]:
        """Yield the graph of the run's step, if one is tried; within, this batch is worked on for the run alone."""
        with self.on_behalf_of(run_state.place):
            graph = self._graphs.get(run_state.place)
            may_overlap = graph is not None and graph.may_overlap(loaded)
            with self._streams.of(run_state.place, may_overlap=may_overlap):
                yield graph

    def obey_signal(self, run_state: RunState) -> None:
        """Obey stop or pause between two steps, when all is in the checkpoint that a pause leaves.

        Raises:
            Stopped, Paused.
            NotFinite: instead of a pause.
        """
        where = f"in epoch {run_state.epoch + 1} after {run_state.sums.steps} of {self._setting.feed.steps} steps"
        match self._setting.replicas.greatest(run_state.signal()):
            case Signal.STOP:
                raise Stopped(f"run {run_state.task.run.name!r} was stopped {where}")
            case Signal.PAUSE:
                self.check_finite(run_state, run_state.sums.read())
                run_state.save()
                raise Paused(f"run {run_state.task.run.name!r} was paused {where}")

    def report_and_check(self, run_state: RunState) -> None:
        """Send an event now and then after a step that was launched, and check that all steps so far were finite.

        Raises:
            NotFinite.
        """
        reading = run_state.report_step(self._setting.feed.steps)
        # Several processes of one student compute a bad step again together, so all look after the same one.
        if run_state.sums.steps % check_every(self._setting.device) == 0:
            if reading is None and bool(run_state.not_finite):
                reading = run_state.sums.read()
        elif run_state.training.actors > 1:
            reading = None
        if reading is not None:
            self.check_finite(run_state, reading)

    def check_finite(self, run_state: RunState, reading: Reading) -> None:
        """Refuse to go on after a step whose loss or gradient was not finite; no update was made since.

        Raises:
            NotFinite: naming the step, and the sample where one is the cause.
        """
        if reading.bad_steps:
            step = run_state.sums.steps - reading.bad_steps
            loaded = self._setting.feed.load(self._setting.feed.inputs_again(step))
            raise explain_not_finite(self._compute, run_state, step, loaded)

    def save(self, run_states: Sequence[RunState]) -> None:
        """Save checkpoints in the middle of an epoch."""
        for run_state in self.still_there(run_states):
            with self.on_behalf_of(run_state.place):
                reading = run_state.sums.read()
                if run_state.training.actors == 1:
                    self.check_finite(run_state, reading)
                if not reading.bad_steps:
                    run_state.save()


def share_time(run_states: Sequence[RunState], since: float) -> float:
    """Divide the time since then among those who have used it; returns what time it is."""
    now = time.monotonic()
    for run_state in run_states:
        run_state.sums.seconds += (now - since) / len(run_states)
    return now


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that raised this held: activations of a batch that did not fit, say."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
