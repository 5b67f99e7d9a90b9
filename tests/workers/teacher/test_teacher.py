"""The teacher: preprocessing to the bit, one answer whatever the batch, and the device that it runs on."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from tests.support import cuda_session, onnx_models
from tests.support.cuda_session import CudaDouble
from tests.support.small_teachers import PLAIN, labelled, pictures, teacher
from workers.augmentation.apply import resize
from workers.config.teacher import Preprocessing
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory
from workers.onnx.checks.check import check_onnx
from workers.onnx.sessions import session as onnx_session
from workers.teacher import sessions
from workers.teacher.preprocess import preprocess
from workers.teacher.teacher import Teacher

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


# --------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_preprocessing_is_the_formula_to_the_bit(channels: str, layout: str) -> None:
    given = Preprocessing(channels=channels, layout=layout, scale=1 / 255)
    images = pictures(5)
    result = preprocess(images, given)
    x = images[..., ::-1] if channels == "bgr" else images
    scaled = x.astype(np.float32) * np.float32(given.scale)
    expected = (scaled - np.float32(given.mean)) / np.float32(given.std)
    if layout == "nchw":
        expected = expected.transpose(0, 3, 1, 2)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def test_grey_pictures_are_repeated_and_colour_ones_turned_to_luma() -> None:
    unit = {"scale": 1.0, "layout": "nhwc"}
    grey = pictures(2, channels=1)
    colour = preprocess(grey, Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, **unit))
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=-1))
    images = pictures(64)
    luma = preprocess(images, Preprocessing(channels="gray", mean=(0.0,), std=(1.0,), **unit))
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    np.testing.assert_array_equal(luma[..., 0], expected)


def test_pictures_are_resized_by_the_views_own_rule() -> None:
    images = pictures(3)
    result = preprocess(images, PLAIN.model_copy(update={"size": (5, 12), "layout": "nhwc", "scale": 1.0}))
    np.testing.assert_array_equal(result, resize(torch.from_numpy(images), 5, 12).numpy())


def test_pictures_with_an_alpha_channel_are_refused() -> None:
    with pytest.raises(InvalidTeacher, match="have 4 channels"):
        preprocess(pictures(1, channels=4), PLAIN)


# ---------------------------------------------------------------------------------------------------------- running


def test_logits_are_the_graphs_function_of_the_preprocessed_picture(tmp_path: Path) -> None:
    images = pictures(9)
    weight_PN = np.random.default_rng(1).normal(size=(192, 4)).astype(np.float32)
    x = (images.astype(np.float64) / 255).transpose(0, 3, 1, 2).reshape(9, -1)
    for given in (images, torch.from_numpy(images)):
        logits = teacher(onnx_models.linear(weight_PN), tmp_path).logits(given)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, x @ weight_PN, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_a_fixed_batch_is_padded_and_cut(rows: int, tmp_path: Path) -> None:
    free = teacher(onnx_models.random_linear(), tmp_path)
    images = pictures(rows)
    expected = free.logits(images)
    fixed = teacher(onnx_models.random_linear(batch=5), tmp_path)
    assert (free.batch, fixed.batch) == (None, 5)
    np.testing.assert_allclose(fixed.logits(images), expected, rtol=1e-5, atol=1e-6)


def test_a_float16_graph_is_fed_float16_and_answers_in_float32(tmp_path: Path) -> None:
    images = pictures(4)
    expected = teacher(onnx_models.random_linear(), tmp_path).logits(images)
    half = teacher(onnx_models.random_linear(dtype=np.float16), tmp_path)
    assert half.preprocess(images).dtype == np.float16
    logits = half.logits(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_a_teacher_for_probabilities_takes_their_log_and_never_minus_infinity(tmp_path: Path) -> None:
    images = np.array([0, 255], np.uint8).repeat(192).reshape(2, 8, 8, 3)
    weight_PN = np.zeros((192, 2))
    weight_PN[:, 0] = 1.0  # a logit gap of 0, and one of 192: the second probability underflows to 0
    built = onnx_models.linear(weight_PN, tail=["Softmax"])
    raw = teacher(built, tmp_path).logits(images)
    assert raw[1, 1] == 0
    logits = teacher(built, tmp_path, output_kind="log_probabilities").logits(images)
    np.testing.assert_allclose(logits, [[math.log(0.5)] * 2, [0.0, math.log(np.finfo(np.float32).tiny)]], rtol=1e-6)


def test_pictures_of_a_size_that_the_graph_does_not_take_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=r"are 9x9 pixels .*, the teacher wants 8x8: set `size`"):
        teacher(onnx_models.random_linear(), tmp_path).logits(pictures(2, side=9))


def test_a_preprocessing_that_cannot_fit_is_refused_when_the_teacher_is_made(tmp_path: Path) -> None:
    grey = Preprocessing(channels="gray", mean=(0.5,), std=(0.5,))
    with pytest.raises(InvalidTeacher, match=r"makes 1 channels, the teacher's input is \[batch, 3, 8, 8\]"):
        teacher(onnx_models.random_linear(), tmp_path, grey)


def test_what_the_runtime_cannot_compute_names_the_shape_it_was_given(tmp_path: Path) -> None:
    built = onnx_models.random_linear()
    for dim in list(built.graph.input[0].type.tensor_type.shape.dim)[1:]:
        dim.dim_param = f"d{dim.dim_value}"
    with pytest.raises(InvalidTeacher, match=r"cannot process an input of shape \[2, 3, 9, 9\]"):
        teacher(built, tmp_path).logits(pictures(2, side=9))


def test_what_the_runtime_cannot_load_is_refused(tmp_path: Path) -> None:
    built = onnx_models.random_linear()
    built.graph.node[0].attribute[0].i = 7  # flattens at an axis that does not exist: the checker lets it pass
    with pytest.raises(InvalidTeacher, match="ONNX Runtime cannot load the teacher"):
        teacher(built, tmp_path)


# ----------------------------------------------------------------------------------------------------------- device


def test_the_provider_is_told_with_its_reason(tmp_path: Path) -> None:
    asked = teacher(onnx_models.random_linear(), tmp_path)
    assert (asked.provider, asked.provider_reason) == ("CPUExecutionProvider", "asked for")


@needs_no_gpu
def test_without_a_gpu_auto_takes_the_cpu_and_says_why(tmp_path: Path) -> None:
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    session = Teacher(path, PLAIN, threads=1)
    assert session.provider == "CPUExecutionProvider"
    assert "CUDA" in session.provider_reason


@needs_no_gpu
def test_a_promised_gpu_without_a_driver_is_an_error_with_torchs_words(tmp_path: Path) -> None:
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    with pytest.raises(DeviceUnavailable, match=r"was to run on a GPU, but torch .* NVIDIA driver .*RETORT_GPUS=0"):
        Teacher(path, PLAIN, threads=1, device="cuda")


@needs_no_gpu
def test_a_cuda_provider_that_does_not_load_is_noticed_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose device is seen and whose libraries are broken: ONNX Runtime falls back in silence."""
    cuda_session.see_a_device(monkeypatch)
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    session = Teacher(path, PLAIN, threads=1, device="auto")
    assert session.provider == "CPUExecutionProvider"
    missing = r"cannot load its CUDA provider: lib\w+\.so\.\d+: cannot open shared object file"
    assert re.search(missing, session.provider_reason)
    with pytest.raises(DeviceUnavailable, match=missing):
        Teacher(path, PLAIN, threads=1, device="cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    return cuda_session.install(monkeypatch)


def on_cuda(built: onnx.ModelProto, tmp_path: Path, **options: object) -> Teacher:
    path = onnx_models.save(built, tmp_path / "teacher.onnx")
    return Teacher(path, PLAIN, threads=1, device="cuda", **options)


def test_a_teacher_on_cuda_says_how_far_its_outputs_are_from_the_cpus(tmp_path: Path, cuda: CudaDouble) -> None:
    """On noise of the graph's size, or on pictures of the dataset."""
    cuda.factor = 1.001
    session = on_cuda(onnx_models.random_linear(), tmp_path)
    assert session.provider == "CUDAExecutionProvider"
    assert re.fullmatch(
        r"Double H200 is there; its outputs for 8 pictures differ from the CPU's by \S+, 0\.001 of the largest",
        session.provider_reason,
    )
    assert (cuda.calls, cuda.cpu_sessions) == ([8], 1)
    assert session.provenance["tf32"] is False
    assert (session.provenance["provider"], session.provenance["device"]) == ("CUDAExecutionProvider", "Double H200")
    data = labelled(pictures(5), np.arange(5), ("a",) * 5)
    on_cuda(onnx_models.random_linear(), tmp_path, dataset=data)
    assert cuda.calls == [8, 5]


def test_a_teacher_whose_outputs_on_cuda_are_others_is_refused_with_both_names(
    tmp_path: Path, cuda: CudaDouble
) -> None:
    """A difference that only TF32 explains is told; half precision may differ more."""
    cuda.factor = 1.015
    with pytest.raises(
        DeviceUnavailable,
        match=r"on Double H200 \(CUDAExecutionProvider, ONNX Runtime .*\) differ from those of CPUExecutionProvider by "
        r"\S+, 0\.015 of the largest; 0\.01 of it is allowed in float32",
    ):
        on_cuda(onnx_models.random_linear(), tmp_path)
    assert on_cuda(onnx_models.random_linear(dtype=np.float16), tmp_path).warnings == ()
    cuda.factor = 1.005
    (warning,) = on_cuda(onnx_models.random_linear(), tmp_path).warnings
    assert "more than rounding in float32 explains" in warning
    cuda.factor = math.nan
    with pytest.raises(DeviceUnavailable, match="nan of the largest"):
        on_cuda(onnx_models.random_linear(dtype=np.float16), tmp_path)


def test_tf32_is_off_in_a_float32_graph_and_half_precision_keeps_its_tensor_cores(
    tmp_path: Path, cuda: CudaDouble
) -> None:
    on_cuda(onnx_models.random_linear(), tmp_path, memory_fraction=0.25)
    half = on_cuda(onnx_models.random_linear(dtype=np.float16), tmp_path)
    assert [options["use_tf32"] for options in cuda.options] == ["0", "1"]
    assert [options["gpu_mem_limit"] for options in cuda.options] == [str(1 << 28), str(1 << 30)]
    assert half.provenance["tf32"] is True
    cuda.capability = (7, 5)
    assert on_cuda(onnx_models.random_linear(dtype=np.float16), tmp_path).provenance["tf32"] is False


def test_a_graph_is_half_precision_if_most_of_its_weights_are(tmp_path: Path) -> None:
    """Converters keep float32 at the input and the output, and in some constants."""
    built = onnx_models.random_linear(dtype=np.float16)
    built.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    built.graph.node.insert(0, helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT16))
    built.graph.node[1].input[0] = "cast"
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(9, np.float32), "unused"))
    graph = check_onnx(onnx_models.save(built, tmp_path / "teacher.onnx"))
    assert (graph.parameters, graph.half_parameters, graph.is_half) == (192 * 4 + 4 + 9, 192 * 4 + 4, True)
    assert not check_onnx(onnx_models.save(onnx_models.random_linear(), tmp_path / "float32.onnx")).is_half


def test_operators_that_cuda_leaves_to_the_cpu_are_told(tmp_path: Path, cuda: CudaDouble) -> None:
    cuda.cpu_operators.update(["MatMulInteger", "MatMulInteger", "Resize"])
    (warning,) = on_cuda(onnx_models.random_linear(), tmp_path).warnings
    assert "3 operators of the teacher run on the CPU" in warning
    assert "MatMulInteger (2), Resize (1)" in warning


def test_calls_on_cuda_have_one_size_and_the_cpu_computes_nothing_twice(tmp_path: Path, cuda: CudaDouble) -> None:
    built = onnx_models.random_linear()
    session, on_cpu = on_cuda(built, tmp_path), teacher(built, tmp_path)
    cuda.calls.clear()
    for rows in (16, 3, 40):
        images = pictures(rows)
        logits = session.run(session.preprocess(images), 16)
        np.testing.assert_allclose(logits, on_cpu.logits(images), rtol=1e-5, atol=1e-6)
    assert cuda.calls == [16] * 5
    given = []
    run = on_cpu._session.run
    on_cpu._session.run = lambda input_, timeout_s: given.append(len(input_)) or run(input_, timeout_s)
    assert len(on_cpu.run(on_cpu.preprocess(pictures(3)), 16)) == 3
    assert given == [3]


def test_a_batch_that_does_not_fit_is_halved_and_stays_so(tmp_path: Path, cuda: CudaDouble) -> None:
    session = on_cuda(onnx_models.random_linear(), tmp_path)
    cuda.calls.clear()
    cuda.rows_max = 5
    images = pictures(16)
    expected = teacher(onnx_models.random_linear(), tmp_path).logits(images)
    for _ in range(2):
        np.testing.assert_allclose(session.run(session.preprocess(images), 16), expected, rtol=1e-5, atol=1e-6)
    assert cuda.calls == [16, 8] + [4] * 8
    assert session.rows_max == 4
    assert len(cuda.options) == 3  # each time a new session, whose memory is not in pieces
    assert session.provider_reason.endswith("; 4 pictures at once, since more do not fit into its memory")


def test_a_single_picture_or_a_fixed_batch_that_does_not_fit_is_an_error(tmp_path: Path, cuda: CudaDouble) -> None:
    session = on_cuda(onnx_models.random_linear(), tmp_path)
    fixed = on_cuda(onnx_models.random_linear(batch=4), tmp_path, memory_fraction=0.25)
    cuda.rows_max = 0
    with pytest.raises(OutOfMemory, match=r"no memory for 1 pictures at once\. Fewer .*limit is 1.00 GiB, 1 of the"):
        session.run(session.preprocess(pictures(4)), 4)
    with pytest.raises(
        OutOfMemory, match=r"for 4 pictures at once\. .*limit is 0.25 GiB, 0.25 of .*larger RETORT_GPU_SHARE"
    ):
        fixed.run(fixed.preprocess(pictures(4)), 4)


@pytest.mark.parametrize("failure", [None, "CUDA failure 304: OS call failed"])
def test_a_teacher_on_a_gpu_is_confined_where_that_works_and_says_so_where_not(
    failure: str | None, cuda: CudaDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides is a network of ours, not how this one opens."""
    asked: list[bool | None] = []

    class Confined(onnx_session.OnnxSession):
        missing: tuple[str, ...] = ()
        inputs = None

        def __init__(self, *args: object, is_confined: bool | None = None, limits: object, **options: object) -> None:
            on_gpu = options.pop("providers", None) is not None
            super().__init__(*args, **options)
            asked.append(is_confined if on_gpu else None)
            self.provider = onnx_session.CUDA_PROVIDER if on_gpu else self.provider
            self.missing = () if is_confined is not False else ("confinement (it was started without)",)

        def rows_in_time(self, input_: NDArray[np.float32]) -> int:
            return len(input_)

        def empty(self, shape: Sequence[int], dtype: object) -> NDArray[np.float32]:
            return np.empty(shape, dtype)

    monkeypatch.setattr(sessions, "ConfinedSession", Confined)
    monkeypatch.setattr(sessions, "confinement_failure", lambda: failure)
    path = onnx_models.save(onnx_models.random_linear(), tmp_path / "teacher.onnx")
    session = Teacher(path, PLAIN, threads=1, device="cuda", sessions=1)
    assert asked == [failure is None, None]  # the second is on the CPU, to compare
    assert ("runs without confinement" in " ".join(session.warnings)) == (failure is not None)
