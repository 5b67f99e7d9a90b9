"""Catalog of students: description, publication, size and image sizes of each.

Light: no torch, so that the API process can check a job and list the choices; ``build`` makes the networks. To add a
family, write its network in a file of this folder and add its sizes to ``CIFAR``: see "Add a student family" in
workers/README.md.

Two spellings, one rule: a bare name is the form that the distillation papers train on 32x32 images (the mdistiller code
base is their common reference), or one of this project's own small networks; ``torchvision/NAME`` is torchvision's
classifier NAME, always, so that ``mobilenet_v2`` (half width, stride 16) and ``torchvision/mobilenet_v2`` (full width,
stride 32) cannot be confused; ``timm/NAME`` is timm's, and any other prefix that of a package of the operator's
(``entry_points``). ``uploaded/ID`` is a client's own program (``program``).

The numbers are literals, not computed: a test builds every network and holds the table to it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType

from workers.errors import InvalidJob, UnknownName
from workers.students import program, timm_catalog
from workers.students.cifar_catalog import CIFAR
from workers.students.entry_points import students_of_packages
from workers.students.student_info import StudentInfo
from workers.students.torchvision_catalog import TORCHVISION, TorchvisionFamily

PREFIX = "torchvision/"


def _torchvision(family: TorchvisionFamily) -> tuple[StudentInfo, ...]:
    return tuple(
        StudentInfo(
            name=PREFIX + size,
            family=family.family,
            summary=f"torchvision's {size}, from random weights",
            paper=family.paper,
            parameters_100=parameters,
            min_side=family.min_side,
            side_multiple=family.side_multiple,
            batch_norm=family.batch_norm,
            torchvision=True,
            drop_path=family.drop_path,
        )
        for size, parameters in family.sizes.items()
    )


def _uploaded(name: str) -> StudentInfo:
    """Description of a client's own program, of which its file tells the rest."""
    return StudentInfo(
        name=name,
        family="uploaded",
        summary="a program of torch.export that was uploaded, with its weights",
        paper="none",
        parameters_100=None,
        min_side=8,
        batch_norm=None,
        torchvision=False,
    )


OWN: Mapping[str, StudentInfo] = MappingProxyType(
    {info.name: info for info in (*CIFAR, *(i for f in TORCHVISION for i in _torchvision(f)))}
)
"""Students whose description is part of this package."""


class _Students(Mapping[str, StudentInfo]):
    """All students, looked for at the first access: those of other packages may import this module."""

    @cached_property
    def _all(self) -> dict[str, StudentInfo]:
        more = (*timm_catalog.timm_students(), *students_of_packages())
        return {**OWN, **{info.name: info for info in more}}

    def __getitem__(self, name: str) -> StudentInfo:
        if program.is_uploaded(name):
            return _uploaded(name)
        return OWN[name] if name in OWN else self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


STUDENTS: Mapping[str, StudentInfo] = _Students()


def student_names() -> tuple[str, ...]:
    """Names that a job may use: the bare ones first, then torchvision's, timm's and those of other packages."""
    return tuple(STUDENTS)


def plain_name(name: str) -> str:
    """Name of a student without the prefix that says who makes it."""
    return name.rpartition("/")[2]


def check_student(name: str) -> StudentInfo:
    """Look up the description of ``name``.

    Raises:
        UnknownName: there is no such student; a torchvision or timm name without its prefix is answered
            with the spelling that is meant, not with the nearest CIFAR network.
        InvalidJob: it is timm's, and timm is not installed; or a package of students is broken.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    if name.startswith(timm_catalog.PREFIX) and not timm_catalog.is_installed():
        raise InvalidJob(f"student {name!r} cannot be made: {timm_catalog.MISSING}")
    prefixed = [spelt for prefix in (PREFIX, timm_catalog.PREFIX) if (spelt := prefix + name) in STUDENTS]
    # Of a prefix, the names that have it: timm alone has a thousand.
    prefix, slash, _ = name.rpartition("/")
    alike = [known for known in STUDENTS if known.startswith(prefix + slash)] if slash else []
    raise UnknownName("student", name, prefixed or alike or OWN)


def is_known_by_size(info: StudentInfo) -> bool:
    """Whether the description tells which pictures the student takes; else it is tried when a job starts."""
    return info.name in OWN


def check_image_side(name: str, image_side: int) -> None:
    """Refuse images that the student ``name`` cannot be trained on.

    Args:
        name: of a student.
        image_side: the shorter of height and width, in pixels.

    Raises:
        UnknownName: there is no such student.
        InvalidJob: the side is below the student's least, or not the multiple it needs.
    """
    info = check_student(name)
    if image_side < info.min_side:
        raise InvalidJob(
            f"student {name!r} needs images of at least {info.min_side} pixels a side, these have "
            f"{image_side}: enlarge them, or choose a student whose min_side is {image_side} or less"
        )
    if image_side % info.side_multiple:
        raise InvalidJob(
            f"student {name!r} needs images whose side is a multiple of {info.side_multiple} pixels, "
            f"these have {image_side}: resize them, or choose another student"
        )


def check_batch_size(name: str, batch_size: int) -> None:
    """Refuse batches that the student ``name`` cannot be trained on.

    Args:
        name: of a student.
        batch_size: pictures in a batch, or in a part of one where the gradient is accumulated.

    Raises:
        UnknownName: there is no such student.
        InvalidJob: it has batch normalisation, and a batch is one picture.
    """
    if check_student(name).batch_norm and batch_size < 2:
        raise InvalidJob(
            f"student {name!r} has batch normalisation, which needs 2 pictures or more in a batch, and "
            f"training.batch_size / training.accumulate is {batch_size}: set it to 2 or more, or choose a student "
            "whose batch_norm is false"
        )


def check_drop_path(name: str) -> None:
    """Refuse a rate of stochastic depth for the student ``name`` if it has none.

    Raises:
        UnknownName: there is no such student.
        InvalidJob: it has no stochastic depth.
    """
    if program.is_uploaded(name):
        raise InvalidJob(
            f"training.drop_path sets the rate of stochastic depth, and the uploaded program {name!r} keeps the one "
            "that it was exported with: leave it out"
        )
    if check_student(name).drop_path is False:
        raise InvalidJob(
            f"training.drop_path sets the rate of stochastic depth, and student {name!r} has none: leave it out, or "
            "choose students whose drop_path is true (GET /v1/students)"
        )


def describe() -> list[dict[str, object]]:
    """Describe every student as plain JSON: ``StudentInfo`` without the network, and the schema of its name."""
    return [
        {
            **{name: value for name, value in asdict(info).items() if name != "network"},
            "json_schema": _json_schema(info),
        }
        for info in STUDENTS.values()
    ]


def _json_schema(info: StudentInfo) -> dict[str, object]:
    return {
        "type": "object",
        "title": info.name,
        "description": info.summary,
        "properties": {"name": {"const": info.name}},
        "required": ["name"],
        "additionalProperties": False,
    }
