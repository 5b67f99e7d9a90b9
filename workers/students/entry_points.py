"""Students of other packages: families that an operator has installed, found by the entry point ``retort.students``.

An entry point NAME gives a sequence of ``StudentInfo``, each called ``NAME/...``, whose ``Network`` names the module of
its torch class in full. The module that holds the sequence must load no torch: the API process reads it.
"""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from workers.errors import InvalidJob, first_line
from workers.students.student_info import StudentInfo

GROUP = "retort.students"
_OWN = frozenset({"torchvision", "timm"})


def students_of_packages() -> Iterator[StudentInfo]:
    """Yield the students of all installed packages, by the names of their entry points.

    Raises:
        InvalidJob: naming an entry point that cannot be loaded, or gives something else.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        yield from _students(point)


def _students(point: EntryPoint) -> Iterator[StudentInfo]:
    where = f"entry point {point.name!r} ({point.value}) of group {GROUP}"
    if point.name in _OWN:
        raise InvalidJob(f"{where}: this prefix is taken; give the entry point another name")
    try:
        given = tuple(point.load())
    except Exception as error:
        # Whatever another package raises when it is imported.
        raise InvalidJob(f"{where} cannot be loaded: {first_line(error)}. Mend or uninstall its package") from error
    for info in given:
        if not isinstance(info, StudentInfo):
            raise InvalidJob(f"{where} gives {type(info).__name__!r}: it is to be a sequence of StudentInfo")
        if not info.name.startswith(f"{point.name}/"):
            raise InvalidJob(f"{where} gives a student {info.name!r}: its name is to begin with {point.name + '/'!r}")
        if info.network is None or "." not in info.network.module:
            raise InvalidJob(f"{where}: student {info.name!r} is to have a Network whose module is named in full")
        yield info
