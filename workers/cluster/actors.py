"""Actors that train runs and infer blocks: the plain functions of ``training`` and ``teacher`` in processes of Ray.

An actor works in one of its threads, and answers in another: events, outcome, what it holds, requests to stop.
Training actors have names and belong to nobody: when the engine is killed they go on, and its successor finds them by
name. Events since are kept until they are acknowledged.

The engine imports this file, and has no use for torch, which takes 300 MiB and seconds to import: packages for actors
alone are imported where they begin their work.
"""

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workers import logs
from workers.cluster import ray_api
from workers.cluster.deaths import ProcessId, own_id
from workers.cluster.outcomes import Numbered, Share, TaskChannel, TaskOutcome, outcome, outcome_of
from workers.config.task import InferenceTask, TrainingTask
from workers.errors import WorkerError
from workers.events import Log
from workers.logs import RunLog
from workers.run_files import ARTIFACTS

if TYPE_CHECKING:
    from workers.teacher.teacher import Teacher


class Actor:
    """Base of all actors: events, outcome and requests of its slots of work.

    Args:
        slots: of work that it does at once, each with its own channel.
        first_event: the number of the first event of each.
    """

    def __init__(self, slots: int = 1, first_event: int = 0) -> None:
        logs.configure("info")
        self._channels = [TaskChannel(first_event) for _ in range(slots)]

    def answer(
        self, slot: int, acknowledged: int
    ) -> tuple[list[Numbered], TaskOutcome | None, list[Share] | str | None, ProcessId]:
        """Answer: events from number ``acknowledged`` on (earlier ones are forgotten), the outcome, the shares held.

        The third is the GPU that this process is on, by Ray's name, or the shares of the processes that it has started;
        the last identifies this process for a watch.
        """
        return (*self._channels[slot].take(acknowledged), self._held(), own_id())

    def process(self) -> ProcessId:
        """Identity of this process, for a watch."""
        return own_id()

    def _held(self) -> list[Share] | str | None:
        ids = ray_api.own_gpus()
        return str(ids[0]) if ids else None

    def stop(self, slot: int) -> None:
        """Request that the work of a slot stops at its next batch."""
        self._channels[slot].stopping.set()

    def pause(self, slot: int) -> None:
        """Request that the work of a slot leaves a checkpoint and ends as ``paused``."""
        self._channels[slot].pausing.set()


class TrainingActor(Actor):
    """Actor that trains or exports runs from its start on: an engine that finds it by name need not start the work.

    Args:
        tasks_json: a ``TrainingTask`` for each slot; several share their batches.
        first_event: the number of the first event of each.
    """

    def __init__(self, tasks_json: list[str], first_event: int = 0) -> None:
        super().__init__(len(tasks_json), first_event)
        threading.Thread(target=self._work, args=(tasks_json,), name="training", daemon=True).start()

    def _work(self, tasks_json: list[str]) -> None:
        run_logs: list[RunLog] = []
        try:
            from workers.training.loop import train_group
            from workers.training.run_handle import RunHandle

            tasks = [TrainingTask.model_validate_json(task) for task in tasks_json]
            # Of several processes of one student the first writes.
            run_logs += [RunLog(task.folder, task.folder / ARTIFACTS, task.rank == 0, task.stage) for task in tasks]
            logs.speak_for(run_logs)
            members = [
                RunHandle(task, log.emitting(channel.emit), channel.stopping.is_set, channel.pausing.is_set)
                for task, log, channel in zip(tasks, run_logs, self._channels, strict=True)
            ]
            for slot, how in train_group(members):
                if tasks[slot].stage == "train" and isinstance(how, dict):
                    # The export may be started by another engine, which has not made this task.
                    how = {**how, "order": tasks_json[slot]}
                self._end(slot, how, run_logs)
        except BaseException as error:
            # BaseException, for a run without an outcome would never end.
            why = error if isinstance(error, Exception) else WorkerError(f"its process cannot go on: {error!r}")
            for slot, channel in enumerate(self._channels):
                if channel.outcome is None:
                    self._end(slot, why, run_logs)

    def _end(self, slot: int, how: dict[str, Any] | Exception, run_logs: Sequence[RunLog]) -> None:
        # The log first: once the outcome is there, this process may be ended.
        with run_logs[slot].ending(how) if run_logs else contextlib.nullcontext():
            ended = outcome(how)
        self._channels[slot].outcome = ended


class InferenceActor(Actor):
    """Actor that infers blocks of the caches of one job, with a session that is kept while it fits the task."""

    def __init__(self) -> None:
        super().__init__()
        self._teacher: Teacher | None = None
        self._opened_for = ""

    def gpu_ids(self) -> Sequence[int | str]:
        """The GPUs of this machine that it may use; none on a CPU."""
        return ray_api.own_gpus()

    def work(self, task_json: str, blocks: list[int]) -> TaskOutcome:
        """Infer and commit these blocks.

        Args:
            task_json: an ``InferenceTask``.
            blocks: numbers of blocks that are missing in its cache.

        Returns:
            The outcome, whose value holds ``provider``, ``reason`` and ``warnings``.
        """
        return outcome_of(lambda: self._infer(task_json, blocks))

    def _infer(self, task_json: str, blocks: list[int]) -> dict[str, Any]:
        from workers.teacher.inference import infer_with, open_teacher

        task = InferenceTask.model_validate_json(task_json)
        # Both splits of a job have one teacher on one device: its session does not depend on whose blocks it infers.
        opened_for = task.model_dump_json(exclude={"folders", "spec"}) + task.spec.output_kind
        if self._teacher is None or opened_for != self._opened_for:
            # The first session's memory is given back before the second one takes its own.
            self._teacher = None
            self._teacher, self._opened_for = open_teacher(task), opened_for
        warnings = [*self._teacher.warnings]

        def keep_warnings(event: object) -> None:
            # The coordinator reports progress, for all actors together.
            if isinstance(event, Log) and event.level == "warning":
                warnings.append(event.message)

        should_stop = self._channels[0].stopping.is_set
        infer_with(self._teacher, task, blocks, emit=keep_warnings, should_stop=should_stop)
        return {"provider": self._teacher.provider, "reason": self._teacher.provider_reason, "warnings": warnings}
