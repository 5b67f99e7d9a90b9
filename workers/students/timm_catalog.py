"""timm's classifiers as students: their names, read from the source of the timm that is installed. Light: no torch.

Their sizes stand nowhere but in the networks: a job's engine builds each, and tries it on a picture of the dataset's
size, before the teacher is run (``workers.students.trial``).
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from workers.students.student_info import StudentInfo

PREFIX = "timm/"
MISSING = "timm's networks need the extra `timm` where the service runs: pip install 'retort[timm]'"
_PAPER = "Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861"
# timm's own registry is filled by importing all of it, and so torch.
_REGISTERED = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)


def is_installed() -> bool:
    """Whether timm is there; it is not imported."""
    return find_spec("timm") is not None


@cache
def timm_students() -> tuple[StudentInfo, ...]:
    """Every network that timm registers, by name; none where it is not installed."""
    return tuple(sorted(_read(), key=lambda info: info.name))


def _read() -> Iterator[StudentInfo]:
    spec = find_spec("timm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in Path(folder, "models").glob("*.py"):
            for name in _REGISTERED.findall(file.read_text(encoding="utf-8")):
                yield StudentInfo(
                    name=PREFIX + name,
                    family=f"timm {file.stem}",
                    summary=f"timm's {name}, from random weights",
                    paper=_PAPER,
                    parameters_100=None,
                    min_side=8,
                    batch_norm=None,
                    torchvision=False,
                    drop_path=None,
                )
