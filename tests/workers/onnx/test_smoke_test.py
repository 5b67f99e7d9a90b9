"""The smoke run: what it lets through, what it stops, when it is made and when it is not made again."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import onnx_models
from tests.support.attacks import ATTACKS
from tests.support.digits import Digits
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.errors import InvalidTeacher
from workers.events import Log, PreflightChecked, never
from workers.onnx.checks.check import check_onnx
from workers.onnx.sessions import smoke_test
from workers.onnx.sessions.smoke_test import forget, has_passed, remember, smoke_run
from workers.teacher.plan_caches import plan_caches
from workers.teacher.plan_checks import identify


def run(built: onnx.ModelProto, folder: Path, preprocessing: Preprocessing | None = None, **options: object) -> bool:
    path = onnx_models.save(built, folder / "teacher.onnx")
    return smoke_run(path, check_onnx(path), preprocessing or Preprocessing(), **options)


@pytest.mark.parametrize(
    "built",
    [
        onnx_models.random_linear(),
        onnx_models.random_linear(batch=3, tail=["Softmax"]),
        onnx_models.random_linear(dtype=np.float16),
    ],
    ids=["any batch", "a fixed batch, with a softmax", "half precision"],
)
def test_smoke_run_passes_a_good_teacher(built: onnx.ModelProto, tmp_path: Path) -> None:
    assert run(built, tmp_path)


def pooled(shape: tuple[int | str | None, ...], axes: tuple[int, int]) -> onnx.ModelProto:
    """The means of the three channels, for pictures of any size."""
    mean = helper.make_node("ReduceMean", ["images"], ["logits"], axes=axes, keepdims=0)
    return onnx_models.model([mean], [onnx_models.image(shape)], [onnx_models.logits(("batch", 3))])


def test_smoke_run_takes_the_size_of_the_graph_the_preprocessing_or_the_dataset(tmp_path: Path) -> None:
    """Where none is known nothing is run."""
    open_size = pooled(("batch", 3, None, None), (2, 3))
    assert not run(open_size, tmp_path)
    assert run(open_size, tmp_path, size=(5, 7))
    assert run(open_size, tmp_path, Preprocessing(size=(9, 4)))
    last = pooled(("batch", 8, 8, 3), (1, 2))
    assert run(last, tmp_path, Preprocessing(layout="nhwc"))


def test_smoke_run_preprocesses_its_pictures(tmp_path: Path) -> None:
    """A graph that answers for pictures of its own range alone: it divides by whether every mean is near zero."""
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["above"]),
        helper.make_node("Cast", ["above"], ["one_or_zero"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "one_or_zero"], ["zero_or_one"]),
        helper.make_node("Div", ["one", "zero_or_one"], ["finite"]),
        helper.make_node("Unsqueeze", ["finite", "axis"], ["logits"]),
    ]
    constants = {"limit": np.float32(1), "one": np.float32(1), "axis": np.array([1])}
    built = onnx_models.model(nodes, outputs=[onnx_models.logits(("batch", 1))], constants=constants)
    assert run(built, tmp_path, Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(InvalidTeacher, match="tried on a picture of noise: its output is not finite"):
        run(built, tmp_path, Preprocessing(mean=(0.5,) * 3, std=(0.1,) * 3))


@pytest.mark.parametrize(
    "name",
    [
        "Tile to 64 GiB",
        "Range of 10^12 values",
        "Conv with 60,000 pixels of padding",
        "an operator with too few inputs",
        "an error that quotes a name that is not UTF-8",
        "outputs that depend on the other pictures",
        "two outputs for each picture",
    ],
)
def test_smoke_run_stops_what_must_not_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(ATTACKS[name].build())
    with pytest.raises(InvalidTeacher, match=ATTACKS[name].says) as caught:
        smoke_run(path, check_onnx(path), Preprocessing())
    assert "tried on a picture of noise" in str(caught.value)


def test_smoke_run_ends_an_endless_loop_by_its_timer_and_not_by_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the child takes to begin.
    monkeypatch.setattr(smoke_test, "GRACE_S", 100.0)
    path = tmp_path / "teacher.onnx"
    path.write_bytes(ATTACKS["Loop of 2^62 turns"].build())
    with pytest.raises(InvalidTeacher, match="did not finish 1 pictures in the time allowed"):
        smoke_run(path, check_onnx(path), Preprocessing(), timeout_s=2)


def test_smoke_run_marker_is_of_one_teacher_and_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = TeacherSpec(path=tmp_path / "a", sha256="0" * 64, output="logits")
    others = [
        teacher.model_copy(update=change)
        for change in ({"sha256": "1" * 64}, {"output": "z"}, {"preprocessing": Preprocessing(layout="nhwc")})
    ]
    folder = tmp_path / "smoke"
    assert not has_passed(folder, teacher)
    remember(folder, teacher)
    assert has_passed(folder, teacher.model_copy(update={"path": tmp_path / "elsewhere"}))
    assert not any(has_passed(folder, other) for other in others)
    with monkeypatch.context() as patch:
        patch.setattr(smoke_test, "_version", lambda: "another")
        assert not has_passed(folder, teacher)
    forget(folder, teacher)
    forget(folder, teacher)
    assert not has_passed(folder, teacher)
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------ before real work


def test_smoke_run_of_a_jobs_teacher_happens_once(digits: Digits, tmp_path: Path) -> None:
    """Whoever has tried it, the engine or the API: the marker is the same."""
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    events: list[object] = []

    def tried() -> int:
        plan_caches(digits.job("kd"), folders, events.append, never, threads=1, device="cpu")
        return sum(isinstance(event, Log) and "smoke run" in event.message for event in events)

    assert (tried(), tried()) == (1, 1)
    assert has_passed(folders.smoke, identify(digits.teacher_spec))
    forget(folders.smoke, identify(digits.teacher_spec))
    assert tried() == 2


def test_smoke_run_that_fails_keeps_a_job_from_running_its_teacher(digits: Digits, tmp_path: Path) -> None:
    """The preflight, which would run it in this very process, is not reached."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMean", ["huge"], ["mean"], keepdims=0),
        helper.make_node("Add", ["z", "mean"], ["logits"]),
    ]
    built = onnx_models.model(
        nodes,
        [onnx_models.image(("batch", 1, 8, 8))],
        [onnx_models.logits(("batch", 10))],
        {"weight": np.zeros((64, 10), np.float32), "shape": np.array([1 << 34])},
    )
    path = onnx_models.save(built, tmp_path / "bomb.onnx")
    teacher = digits.teacher_spec.model_copy(update={"path": path, "sha256": None})
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    events: list[object] = []
    with pytest.raises(InvalidTeacher, match=r"tried on a picture of noise: .*memory"):
        plan_caches(digits.job("kd").model_copy(update={"teacher": teacher}), folders, events.append, never, threads=1)
    assert not any(isinstance(event, PreflightChecked) for event in events)
    assert not folders.contracts.exists()
