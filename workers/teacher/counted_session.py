"""Session of a preflight: it counts what the teacher is run on, and can be stopped after every batch."""

from pathlib import Path

from workers.config.teacher import TeacherSpec
from workers.data.preparation.prepared import Dataset
from workers.errors import Stopped
from workers.events import ShouldStop
from workers.teacher.forwards import ForwardCounter
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


def open_session(
    teacher: TeacherSpec,
    dataset: Dataset,
    *,
    threads: int,
    device: Device,
    should_stop: ShouldStop,
    forwards_in: Path | None,
) -> Teacher:
    """Open the session of a preflight.

    Args:
        should_stop: asked after every batch, which then raises ``Stopped``.
        forwards_in: see ``InferenceTask.forwards``; None counts nothing.

    Raises:
        InvalidTeacher: the file is no graph that can be run.
    """
    counter = None if forwards_in is None else ForwardCounter(forwards_in)

    def count(rows: int) -> None:
        if counter is not None:
            counter.add(rows)
        if should_stop():
            raise Stopped("stopped while the teacher was tried on the data")

    return Teacher(
        teacher.path,
        teacher.preprocessing,
        teacher.output,
        reading=teacher,
        threads=threads,
        device=device,
        dataset=dataset,
        on_forward=count,
        sessions=_SESSIONS,
    )
