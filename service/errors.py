"""The errors of ``service``.

::

    ServiceError
    ├── NotFound(kind, id)          (LookupError)      no teacher, dataset, job, run ... of this id
    ├── Conflict                    (RuntimeError)     the thing is in use, or its name is taken
    ├── InvalidRequest              (ValueError)       well-formed JSON that makes no sense; ``pointer`` says where
    ├── MalformedBody               (ValueError)       the body is not what its Content-Type says
    ├── IdempotencyMismatch         (ValueError)       the same Idempotency-Key came with another body
    ├── TooLarge                    (ValueError)       a body or file over its limit
    ├── SlowBody                    (TimeoutError)     a body that hardly moves
    ├── RangeNotSatisfiable         (ValueError)       a Range that the file does not have
    ├── Unauthorized                (PermissionError)  no key, or a wrong one
    ├── Forbidden                   (PermissionError)  the key's scope is too small
    ├── ForeignOrigin               (PermissionError)  without a key only this machine's own pages may call
    ├── TooManyRequests             (RuntimeError)     more than a key may have at once; ``retry_after_s``
    │   └── QueueFull                                  as many jobs of the key are live as may be
    ├── NoRoom                      (RuntimeError)     as many connections are open as may be
    ├── DiskFloor                   (OSError)          less disk is free than the service keeps in reserve
    ├── NotInstalled                (ImportError)      a package of an extra is missing where the API runs
    ├── IllegalMove                 (ValueError)       a state that cannot follow the present one
    ├── RayFailed                   (RuntimeError)     Ray does not start, however often it is tried
    ├── LeaseLost                   (RuntimeError)     an engine writes though another one leads
    ├── InvalidSettings             (ValueError)       settings that contradict each other or the machine
    ├── NewerDatabase               (RuntimeError)     a newer version has migrated the database
    ├── LogGone                     (SQLAlchemyError)  SQLite's write-ahead log was removed after a kill, see ``db``
    ├── DatabaseDiskError           (SQLAlchemyError)  the disk of the database is read-only, or fails, see ``db``
    │   └── DatabaseFull                               it is full
    ├── DataDirBusy                 (RuntimeError)     the data directory is in use, or half restored
    ├── DamagedCopy                 (RuntimeError)     the data directory was copied while a service wrote to it
    ├── DataDirNotEmpty             (RuntimeError)     a restore would write over what a service has kept
    ├── BadBackup                   (ValueError)       a folder that is no whole backup, or none for this service
    ├── BackupFailed                (RuntimeError)     a backup, or a restore, that cannot be made
    ├── UnsafeBinding               (ValueError)       the API would be open to the network without a key
    └── BadKeyFile                  (ValueError)       the file with the API key cannot be used

A message holds the offending value, what is allowed, and the next step. The HTTP status of each is known to
``service.api.problems`` alone.
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


class SlowBody(ServiceError, TimeoutError):
    """A body brings too little in the time that it is given."""


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


class Forbidden(ServiceError, PermissionError):
    """The API key is a right one, and its scope does not cover the request."""


class ForeignOrigin(ServiceError, PermissionError):
    """A page from elsewhere, or a host name that is not this machine's, while no key protects the service."""


class TooManyRequests(ServiceError, RuntimeError):
    """More requests, or more event streams or uploads at once, than one key or address may have.

    Args:
        message: the sentence for a person.
        retry_after_s: when it is worth coming back, in whole seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class QueueFull(TooManyRequests):
    """As many jobs of one key wait or are worked on as it may have."""


class NoRoom(ServiceError, RuntimeError):
    """As many connections are open as there may be, and this one is for health checks alone."""


class DiskFloor(ServiceError, OSError):
    """Less disk is free than the service keeps in reserve."""


class NotInstalled(ServiceError, ImportError):
    """A package that only an extra brings is missing where the API runs.

    Args:
        what: what needs it, as the subject of a sentence.
        package: the missing one.
        extra: that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} the package {package}, which is not installed where the API runs: install Retort there with its "
            f"extra `{extra}` (pip install 'retort[{extra}]')"
        )


class IllegalMove(ServiceError, ValueError):
    """A state that cannot follow the present one."""


class LeaseLost(ServiceError, RuntimeError):
    """This engine does not lead any more: nothing of what it writes may land."""


class RayFailed(ServiceError, RuntimeError):
    """Ray does not start, however often it is tried: the engine gives up."""


class InvalidSettings(ServiceError, ValueError):
    """Settings that contradict each other, or what the machine has."""


class NewerDatabase(ServiceError, RuntimeError):
    """The database was migrated by a newer version, whose tables this one does not know."""


class DataDirBusy(ServiceError, RuntimeError):
    """Another process works on the data directory, or a restore into it has not been finished."""


class DamagedCopy(ServiceError, RuntimeError):
    """The data directory was copied while a service was at work on it, and the copy of its database is damaged."""


class DataDirNotEmpty(ServiceError, RuntimeError):
    """The data directory, or the database, holds what a service has kept."""


class BadBackup(ServiceError, ValueError):
    """A folder that is no whole and undamaged backup, or not one for this service."""


class BackupFailed(ServiceError, RuntimeError):
    """A backup that cannot be made, or a database dump that cannot be restored."""


class UnsafeBinding(ServiceError, ValueError):
    """The API was asked to listen beyond this machine without a key."""


class BadKeyFile(ServiceError, ValueError):
    """The file with the API key is missing, empty or its key too short."""
