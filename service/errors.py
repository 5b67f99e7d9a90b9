"""The errors of ``service``.

::

    ServiceError
    ├── NotFound(kind, id)          (LookupError)      no teacher, data set, job, run ... of this id
    ├── Conflict                    (RuntimeError)     the thing is in use, or its name is taken
    ├── InvalidRequest              (ValueError)       well-formed JSON that makes no sense; ``pointer`` says where
    ├── MalformedBody               (ValueError)       the body is not what its Content-Type says
    ├── IdempotencyMismatch         (ValueError)       the same Idempotency-Key came with another body
    ├── TooLarge                    (ValueError)       a body or file over its limit
    ├── RangeNotSatisfiable         (ValueError)       a Range that the file does not have
    ├── Unauthorized                (PermissionError)  no key, or a wrong one
    ├── ForeignOrigin               (PermissionError)  without a key only this machine's own pages may call
    ├── DiskFloor                   (OSError)          less disk is free than the service keeps in reserve
    ├── IllegalMove                 (ValueError)       a state that cannot follow the present one
    ├── InvalidSettings             (ValueError)       settings that contradict each other or the machine
    ├── UnsafeBinding               (ValueError)       the API would be open to the network without a key
    └── BadKeyFile                  (ValueError)       the file with the API key cannot be used

A message holds the offending value, what is allowed, and the next step. The HTTP status of each is known to
``service.problems`` alone.
"""


class ServiceError(Exception):
    """Base of every error that ``service`` raises on purpose."""


class NotFound(ServiceError, LookupError):
    """There is nothing of this kind under this id.

    Args:
        kind: what was looked for, e.g. ``"job"``.
        id: what it was looked for by.
    """

    def __init__(self, kind: str, id: str) -> None:
        self.kind = kind
        self.id = id
        super().__init__(f"there is no {kind} {id!r}")


class Conflict(ServiceError, RuntimeError):
    """The state of the thing does not allow it now."""


class InvalidRequest(ServiceError, ValueError):
    """A request whose parts are valid but which cannot be carried out.

    Args:
        message: the sentence for a person.
        pointer: JSON pointer fragment of the part that is wrong, e.g. ``"#/dataset"``.
    """

    def __init__(self, message: str, pointer: str | None = None) -> None:
        self.pointer = pointer
        super().__init__(message)


class MalformedBody(ServiceError, ValueError):
    """The body cannot be read as the media type that its header names."""


class IdempotencyMismatch(ServiceError, ValueError):
    """An Idempotency-Key that was used before, for another body."""


class TooLarge(ServiceError, ValueError):
    """A body or file that is larger than its limit."""


class RangeNotSatisfiable(ServiceError, ValueError):
    """A Range header that cannot be read or lies outside the file.

    Args:
        header: what was asked for.
        size_bytes: what there is.
    """

    def __init__(self, header: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        super().__init__(f"cannot serve the range {header!r:.200} of a file of {size_bytes} bytes")


class Unauthorized(ServiceError, PermissionError):
    """The request brings no API key, or not the right one."""


class ForeignOrigin(ServiceError, PermissionError):
    """A page from elsewhere, or a host name that is not this machine's, while no key protects the service."""


class DiskFloor(ServiceError, OSError):
    """Less disk is free than the service keeps in reserve."""


class IllegalMove(ServiceError, ValueError):
    """A state that cannot follow the present one."""


class InvalidSettings(ServiceError, ValueError):
    """Settings that contradict each other, or what the machine has."""


class UnsafeBinding(ServiceError, ValueError):
    """The API was asked to listen beyond this machine without a key."""


class BadKeyFile(ServiceError, ValueError):
    """The file with the API key is missing, empty or its key too short."""
