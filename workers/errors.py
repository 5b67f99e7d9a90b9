"""The errors of ``workers``.

::

    WorkerError
    ├── UserError                 the request is wrong: nobody retries it
    │   ├── InvalidTeacher        (ValueError)  the ONNX file or its preprocessing cannot be used
    │   ├── InvalidDataset        (ValueError)  missing, malformed or outside the data root
    │   ├── InvalidLogits         (ValueError)  logits that were to be imported cannot be used
    │   ├── InvalidStudentFile    (ValueError)  an uploaded file of a student cannot be used
    │   ├── InvalidMethod         (ValueError)  a parameter or combination that is not defined
    │   ├── InvalidJob            (ValueError)  the job as a whole makes no sense
    │   ├── UnknownName           (LookupError) a method, student, parameter ... that does not exist
    │   ├── ContractViolation     (ValueError)  teacher and dataset do not belong together
    │   ├── InvalidText           (ValueError)  a file of text is not UTF-8
    │   ├── LossyCache            (ValueError)  an encoding has lost what is asked of its cache
    │   └── NotFinite             (ArithmeticError) a loss or gradient stopped being a number
    ├── Stopped                   somebody asked for it: the caller's ``should_stop`` returned true
    ├── Paused                    somebody asked for it: a checkpoint of the very step was left
    ├── CheckpointLost            a trained run was to be exported, and what it has left cannot be read
    ├── PeerLost                  another process of the same student is gone
    ├── BatchOverdue              the processes that decode pictures are stuck
    ├── SessionLost               the process that reads or runs a stranger's file was ended from outside
    ├── DeviceUnavailable         a GPU was promised or asked for, and does not work
    ├── OutOfMemory               too little memory for what is computed at once
    └── DiskLow                   (OSError)     no room left for what has to be written

A message holds the offending value, what is allowed, and the next step. Which HTTP status an error
becomes is not known here (``service.api.problems`` holds that table).
"""

from collections.abc import Iterable

from workers.texts import difference, nearest_name, shortened


class WorkerError(Exception):
    """Base of every error that ``workers`` raises on purpose."""


class UserError(WorkerError):
    """The request is wrong; running it again gives the same answer."""


class InvalidTeacher(UserError, ValueError):
    """The teacher's file or the preprocessing given with it cannot be used."""


class InvalidDataset(UserError, ValueError):
    """The dataset is missing, malformed, unreadable or lies outside the data root."""


class InvalidLogits(UserError, ValueError):
    """A file of logits that was to be imported cannot be used, or its rows are not those of the dataset."""


class InvalidStudentFile(UserError, ValueError):
    """An uploaded file of a student is damaged, hostile or of a kind that is not taken."""


class InvalidMethod(UserError, ValueError):
    """A method's parameter or combination is outside its domain."""


class InvalidJob(UserError, ValueError):
    """The parts are valid, the whole is not (a student too deep for the images, say)."""


class RunsExist(InvalidJob):
    """Runs that are to be added to a job are in its plan already."""


class ContractViolation(UserError, ValueError):
    """Teacher and dataset do not belong together (class count, label order, preprocessing)."""


class InvalidText(UserError, ValueError):
    """Text is not UTF-8."""


class LossyCache(UserError, ValueError):
    """The rows of a lossy encoding are not exact enough for a method, or for a comparison."""


class NotFinite(UserError, ArithmeticError):
    """A loss, gradient, temperature or logit is NaN, infinite or out of its domain; the update was not made.

    Attributes:
        sample: the culprit's place in the batch, where one is known.
    """

    def __init__(self, message: str, sample: int | None = None) -> None:
        self.sample = sample
        super().__init__(message)


class UnknownName(UserError, LookupError):
    """A name that is not in a closed list; the message gives the nearest, if one is near, and the whole list.

    Args:
        kind: what is being named, e.g. ``"method"``.
        name: what was asked for.
        allowed: every name that would have been accepted.
    """

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.allowed = tuple(sorted(allowed))
        self.nearest = nearest_name(name, self.allowed)
        alike = next((found for other in self.allowed if other != name and (found := difference(name, other))), None)
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        hint += f" {alike}." if alike else ""
        # Some lists run to a hundred names (torchvision's); a message is read by a person.
        shown = ", ".join(self.allowed[:24]) + (f", ... ({len(self.allowed)} in all)" if len(self.allowed) > 24 else "")
        allowed_here = f"Allowed: {shown}" if shown else f"There is no {kind} of any name yet"
        super().__init__(f"unknown {kind} {shortened(repr(name))}.{hint} {allowed_here}")

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.allowed)


class Stopped(WorkerError):
    """The caller asked to stop; what was committed so far stays."""


class Paused(WorkerError):
    """The caller asked to put the work down; it can be taken up where it was left."""


class CheckpointLost(WorkerError):
    """A trained run was to be exported, and its last checkpoint is gone or damaged: it has to be trained again."""


class PeerLost(WorkerError):
    """Another process of the same student is gone; the run has to start again from its checkpoint."""


class BatchOverdue(WorkerError):
    """The processes that decode pictures have given no batch for minutes; the run has to start from its checkpoint."""


class SessionLost(WorkerError):
    """The confined process that reads a file or runs a teacher was ended from outside, by a full memory say."""


class DeviceUnavailable(WorkerError):
    """A GPU was promised or asked for, and none works here; nothing was computed on the CPU instead."""


class OutOfMemory(WorkerError):
    """There is too little memory, of a device or of the machine, for what was to be computed at once."""


class DiskLow(WorkerError, OSError):
    """There is no room for what has to be written; nothing half-made is left behind."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
