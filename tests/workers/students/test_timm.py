"""timm's networks as students: their names without importing it, their trial on pictures, and their absence."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from workers.errors import InvalidJob, UnknownName
from workers.students import timm_catalog
from workers.students.build import build_student
from workers.students.catalog import STUDENTS, check_student
from workers.students.trial import try_student

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra timm)")


@needs_timm
def test_timm_catalog_has_the_names_that_the_installed_version_lists() -> None:
    import timm

    assert [info.name for info in timm_catalog.timm_students()] == [
        f"timm/{name}" for name in sorted(timm.list_models())
    ]


@needs_timm
def test_timm_catalog_is_read_without_importing_timm_or_torch() -> None:
    program = (
        "import sys; from workers.students.catalog import check_student, describe;"
        "check_student('timm/resnet18'); describe();"
        "sys.exit(any(name in sys.modules for name in ('timm', 'torch', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_check_student_names_the_extra_where_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_catalog, "find_spec", lambda _: None)
    timm_catalog.timm_students.cache_clear()
    STUDENTS.__dict__.pop("_all", None)
    try:
        with pytest.raises(InvalidJob, match=r"student 'timm/resnet18' cannot be made: .* the extra `timm`"):
            check_student("timm/resnet18")
        assert not any(name.startswith("timm/") for name in STUDENTS)
    finally:
        timm_catalog.timm_students.cache_clear()
        STUDENTS.__dict__.pop("_all", None)


@needs_timm
def test_check_student_answers_an_unknown_name_of_timm_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'timm/resnet18'"):
        check_student("timm/resnet81")
    with pytest.raises(UnknownName, match="Did you mean 'timm/nfnet_f0'"):
        check_student("nfnet_f0")


@needs_timm
@pytest.mark.parametrize(
    ("name", "size"), [("timm/test_resnet", (8, 12)), ("timm/test_vit", (32, 32)), ("timm/test_efficientnet", (20, 20))]
)
def test_timm_students_are_made_for_the_pictures_and_counted(name: str, size: tuple[int, int]) -> None:
    told = try_student(name, 7, 1, size, batch=64, drop_path=None)
    network = build_student(name, 7, 1, min(size)).eval()
    parameters = sum(p.numel() for p in network.parameters())
    assert told == f"student {name!r} has {parameters:,} parameters for 7 classes"
    with torch.no_grad():
        assert network(torch.zeros(3, 1, *size)).shape == (3, 7)


@needs_timm
@pytest.mark.parametrize(
    ("name", "size", "batch", "drop_path", "message"),
    [
        ("timm/test_vit", (8, 8), 64, None, "8 x 8"),
        ("timm/vit_tiny_patch16_224", (32, 48), 64, None, "cannot be trained on pictures of 32 x 48"),
        ("timm/vgg11", (32, 32), 64, 0.1, "drop_path"),
        ("timm/test_resnet", (8, 8), 1, None, "in batches of 1: Expected more than 1 value per channel"),
    ],
)
def test_timm_students_that_do_not_take_the_pictures_are_refused(
    name: str, size: tuple[int, int], batch: int, drop_path: float | None, message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        try_student(name, 7, 3, size, batch=batch, drop_path=drop_path)


@needs_timm
def test_drop_path_is_timms_rate() -> None:
    from timm.layers import DropPath
    from timm.models import create_model

    def rates(network: torch.nn.Module) -> list[float]:
        return [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]

    theirs = create_model("test_convnext", num_classes=7, drop_path_rate=0.4)
    found = rates(build_student("timm/test_convnext", 7, 3, 32, drop_path=0.4))
    assert found == rates(theirs)
    assert found
    assert not rates(build_student("timm/test_convnext", 7, 3, 32))
