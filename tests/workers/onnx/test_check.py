"""What an uploaded file is refused for, and in which words; nothing that is refused may have been run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import JsonValue

from tests.support import onnx_models
from workers.errors import InvalidTeacher
from workers.onnx.checks.check import FileLimits, check_onnx
from workers.onnx.checks.parsing import refusing
from workers.onnx.checks.teacher_graph import check_picture
from workers.onnx.sandboxing import sandbox
from workers.onnx.uploads.inspection import inspect_in_subprocess

GEMM = helper.make_node("Gemm", ["flat", "weight"], ["logits"])
FLATTEN = helper.make_node("Flatten", ["images"], ["flat"])
WEIGHT = {"weight": np.zeros((192, 4), np.float32)}


def saved(built: onnx.ModelProto, tmp_path: Path) -> Path:
    return onnx_models.save(built, tmp_path / "teacher.onnx")


# ------------------------------------------------------------------------------------------------------- accepted


def test_check_describes_an_accepted_file(tmp_path: Path) -> None:
    graph = check_onnx(saved(onnx_models.random_linear(), tmp_path))
    assert graph.inputs[0].model_dump() == {"name": "images", "dtype": "float32", "shape": ("batch", 3, 8, 8)}
    assert graph.outputs[0].model_dump() == {"name": "logits", "dtype": "float32", "shape": ("batch", 4)}
    assert (graph.output, graph.opset, graph.nodes, graph.parameters) == ("logits", 17, 2, 192 * 4 + 4)
    assert (graph.batch, graph.classes) == (None, 4)
    assert graph.picture("nchw") == (3, 8, 8)
    assert graph.picture("nhwc") == (8, 3, 8)


def test_inspection_in_a_child_process_finds_the_same(tmp_path: Path) -> None:
    path = saved(onnx_models.random_linear(batch=5), tmp_path)
    graph = inspect_in_subprocess(path, output="logits")
    assert graph == check_onnx(path)
    assert graph.batch == 5


def test_check_takes_symbolic_sizes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = check_onnx(
        saved(
            onnx_models.model(
                nodes, [onnx_models.image(("n", "c", None, "w"))], [onnx_models.logits(("n", "classes"))]
            ),
            tmp_path,
        )
    )
    assert graph.picture("nchw") == (None, None, None)
    assert (graph.batch, graph.classes) == (None, None)


def test_check_derives_an_undeclared_output_shape(tmp_path: Path) -> None:
    built = onnx_models.model([FLATTEN, GEMM], outputs=[onnx_models.logits(None)], constants=WEIGHT)
    assert check_onnx(saved(built, tmp_path)).classes == 4


def test_check_asks_for_an_output_shape_that_it_cannot_derive(tmp_path: Path) -> None:
    nodes = [
        FLATTEN,
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
        helper.make_node("NonZero", ["images"], ["pairs"]),
        helper.make_node("ReduceMax", ["pairs"], ["shape"], axes=[0], keepdims=0),
        helper.make_node("Reshape", ["z", "shape"], ["logits"]),
    ]
    built = onnx_models.model(nodes, outputs=[onnx_models.logits(None)], constants=WEIGHT)
    with pytest.raises(InvalidTeacher, match="the output 'logits' is not declared and cannot be derived"):
        check_onnx(saved(built, tmp_path))


def test_check_takes_a_function_that_the_file_defines(tmp_path: Path) -> None:
    assert check_onnx(saved(with_function("Relu", ""), tmp_path)).nodes == 4


def test_check_takes_onnx_runtimes_own_operators_by_a_list(tmp_path: Path) -> None:
    check_onnx(saved(with_operator("com.microsoft", "QuickGelu"), tmp_path))
    with pytest.raises(InvalidTeacher, match="::DecoderMaskedMultiHeadAttention, which is none of"):
        check_onnx(saved(with_operator("com.microsoft", "DecoderMaskedMultiHeadAttention"), tmp_path))


def test_check_takes_dropout_and_batch_normalisation_in_inference_mode(tmp_path: Path) -> None:
    check_onnx(saved(with_dropout(np.array(False)), tmp_path))
    check_onnx(saved(with_batch_norm(), tmp_path))


def test_check_does_not_count_weights_that_are_also_inputs(tmp_path: Path) -> None:
    weight = helper.make_tensor_value_info("weight", TensorProto.FLOAT, (192, 4))
    built = onnx_models.model([FLATTEN, GEMM], [onnx_models.image(), weight], constants=WEIGHT)
    assert [value.name for value in check_onnx(saved(built, tmp_path)).inputs] == ["images"]


# ------------------------------------------------------------------------------------------------------- not ONNX


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
        (b"PK\x03\x04" + bytes(64), "a zip archive or a PyTorch checkpoint"),
        (b"\x80\x02}q\x00.", "a Python pickle or a PyTorch checkpoint"),
        (b"\x80\x05" + bytes(8), "a Python pickle or a PyTorch checkpoint"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, for which `git lfs pull`"),
        (bytes([64, 0, 0, 0, 0, 0, 0, 0]) + b'{"a":{}}', "a safetensors file"),
        (b"import torch\nmodel = torch.nn.Linear(2, 2)\n", "it is text"),
        pytest.param(b"\xfe\xdc\xba\x98" * 16, "it cannot be parsed as one", id="bytes"),
        (b"\x08\x08", "cut short or damaged"),
    ],
)
def test_check_names_what_is_not_onnx(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content)
    with pytest.raises(InvalidTeacher, match="not an ONNX file") as caught:
        inspect_in_subprocess(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_check_refuses_a_truncated_file(part: float, tmp_path: Path) -> None:
    path = saved(onnx_models.random_linear(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InvalidTeacher, match="not an ONNX file: it begins like one, and is cut short or damaged"):
        check_onnx(path)


def test_check_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    for check in (check_onnx, inspect_in_subprocess):
        with pytest.raises(InvalidTeacher, match="cannot be read: No such file"):
            check(tmp_path / "absent.onnx")


# ------------------------------------------------------------------------------------------------- inside the graph


def with_operator(domain: str, operator: str) -> onnx.ModelProto:
    nodes = [
        FLATTEN,
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
        helper.make_node(operator, ["z"], ["logits"], domain=domain),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return onnx_models.model(nodes, constants=WEIGHT, opset_imports=imports)


def with_function(operator: str, domain: str) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    body = [helper.make_node(operator, ["x"], ["y"], domain=domain)]
    function = helper.make_function("own", "Wrapped", ["x"], ["y"], body, imports)
    nodes = [
        FLATTEN,
        helper.make_node("Wrapped", ["flat"], ["f"], domain="own"),
        helper.make_node("Gemm", ["f", "weight"], ["logits"]),
    ]
    return onnx_models.model(nodes, constants=WEIGHT, opset_imports=imports, functions=[function])


def with_subgraph(operator: str, domain: str) -> onnx.ModelProto:
    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [onnx_models.logits(name=node.output[0])])

    one = branch("one", helper.make_node(operator, ["z"], ["a"], domain=domain))
    other = branch("other", helper.make_node("Identity", ["z"], ["b"]))
    nodes = [
        FLATTEN,
        helper.make_node("Gemm", ["flat", "weight"], ["z"]),
        helper.make_node("If", ["flag"], ["logits"], then_branch=one, else_branch=other),
    ]
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return onnx_models.model(nodes, constants={**WEIGHT, "flag": np.array(True)}, opset_imports=imports)


@pytest.mark.parametrize("build", [with_operator, with_function, with_subgraph])
def test_check_finds_custom_operators_wherever_they_are(
    build: Callable[[str, str], onnx.ModelProto], tmp_path: Path
) -> None:
    built = build("ai.onnx.contrib", "PyOp") if build is with_operator else build("PyOp", "ai.onnx.contrib")
    with pytest.raises(InvalidTeacher, match=r"custom operator ai\.onnx\.contrib::PyOp"):
        check_onnx(saved(built, tmp_path))


def test_check_refuses_a_compiled_part(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match="EPContext, a part compiled for one device"):
        check_onnx(saved(with_operator("com.microsoft", "EPContext"), tmp_path))


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros((192, 4), np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    return tensor


@pytest.mark.parametrize("place", ["initializer", "attribute", "function", "subgraph"])
def test_check_refuses_external_data_wherever_it_is(place: str, tmp_path: Path) -> None:
    built = with_subgraph("Relu", "") if place == "subgraph" else with_function("Relu", "")
    constant = helper.make_node("Constant", [], ["unused"], value=external("hidden"))
    if place == "initializer":
        built.graph.initializer[0].CopyFrom(external("weight"))
    elif place == "attribute":
        built.graph.node.append(constant)
    elif place == "function":
        built.functions[0].node.append(constant)
    else:
        built.graph.node[-1].attribute[0].g.initializer.append(external("hidden"))
    with pytest.raises(InvalidTeacher, match="lie outside the file"):
        inspect_in_subprocess(saved(built, tmp_path))


def test_check_takes_a_file_with_external_data_once_it_is_saved_as_the_refusal_says(tmp_path: Path) -> None:
    path = tmp_path / "two_files.onnx"
    onnx.save(onnx_models.random_linear(), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(InvalidTeacher, match=r"onnx\.save\(onnx\.load\(path\), new_path\)"):
        check_onnx(path)
    onnx.save(onnx.load(path), tmp_path / "one_file.onnx")
    assert check_onnx(tmp_path / "one_file.onnx").parameters == 192 * 4 + 4


def with_dropout(mode: np.ndarray, *, as_node: bool = False) -> onnx.ModelProto:
    constants = {**WEIGHT, "ratio": np.array(0.5, np.float32), **({} if as_node else {"mode": mode})}
    made = [helper.make_node("Constant", [], ["mode"], value=numpy_helper.from_array(mode))] if as_node else []
    nodes = [*made, FLATTEN, helper.make_node("Dropout", ["flat", "ratio", "mode"], ["kept"])]
    return onnx_models.model([*nodes, helper.make_node("Gemm", ["kept", "weight"], ["logits"])], constants=constants)


def with_batch_norm(opset: int = 17, further: tuple[str, ...] = (), **attributes: int) -> onnx.ModelProto:
    statistics = {name: np.ones(3, np.float32) for name in ("s", "b", "m", "v")}
    normalise = helper.make_node(
        "BatchNormalization", ["images", *statistics], ["n", *further], name="bn1", **attributes
    )
    nodes = [normalise, helper.make_node("Flatten", ["n"], ["flat"]), GEMM]
    zero = {"weight": WEIGHT["weight"]}
    if opset < 11:
        nodes[-1] = helper.make_node("MatMul", ["flat", "weight"], ["logits"])
    return onnx_models.model(nodes, constants={**statistics, **zero}, opset=opset)


@pytest.mark.parametrize(
    ("built", "operator"),
    [
        (with_dropout(np.array(True)), "Dropout"),
        (with_dropout(np.array(True), as_node=True), "Dropout"),
        (with_batch_norm(further=("mean", "var"), training_mode=1), "BatchNormalization 'bn1'"),
        (with_batch_norm(opset=9, further=("mean", "var", "saved_mean", "saved_var")), "BatchNormalization 'bn1'"),
    ],
)
def test_check_refuses_training_mode(built: onnx.ModelProto, operator: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=rf"^{operator}.* is in training mode.*model\.eval\(\)"):
        check_onnx(saved(built, tmp_path))


def test_check_refuses_a_malformed_graph(tmp_path: Path) -> None:
    built = onnx_models.model([FLATTEN, helper.make_node("Gemm", ["nowhere", "weight"], ["logits"])], constants=WEIGHT)
    with pytest.raises(InvalidTeacher, match=r"not a valid ONNX graph: .*nowhere"):
        check_onnx(saved(built, tmp_path))


def test_check_turns_every_error_of_onnx_into_a_refusal(tmp_path: Path) -> None:
    """Its shape inference raises the checker's error here; what means no fault of the file passes."""
    built = with_function("Relu", "")
    built.functions.append(built.functions[0])
    built.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(
        InvalidTeacher, match=r"the shapes in the graph contradict each other: .*same implementation id"
    ):
        check_onnx(saved(built, tmp_path))
    for error in (RuntimeError("r"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")):
        with pytest.raises(InvalidTeacher, match=r"^it is bad: "), refusing("it is bad"):
            raise error
    with pytest.raises(MemoryError), refusing("it is bad"):
        raise MemoryError


def test_check_refuses_an_old_opset(tmp_path: Path) -> None:
    built = onnx_models.model([FLATTEN, GEMM], constants=WEIGHT, opset=6)
    with pytest.raises(InvalidTeacher, match="opset 6 of the standard operators, 7 is the oldest"):
        check_onnx(saved(built, tmp_path))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (FileLimits(nodes=1), "has 2 operators, at most 1"),
        (FileLimits(tensor_bytes=100), "the constants take 3088 bytes, at most 100"),
        (FileLimits(file_bytes=100), "larger than the 100 bytes"),
    ],
)
def test_check_refuses_a_file_over_a_limit(limits: FileLimits, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=said):
        check_onnx(saved(onnx_models.random_linear(), tmp_path), limits=limits)


# ----------------------------------------------------------------------------------------------- inputs and outputs


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([onnx_models.image(("batch", 192))], r"has rank 2 \[batch, 192\], it must have rank 4"),
        ([onnx_models.image(None)], "has no declared rank"),
        (
            [onnx_models.image(dtype=TensorProto.INT32)],
            "is int32, .*: export .* `scale`, `mean` and `std`",
        ),
        (
            [onnx_models.image(), onnx_models.logits(name="mask")],
            r"'mask' \(float32 \[batch, 4\]\) is beside the pictures and no single number: make it a constant",
        ),
        ([onnx_models.image((0, 3, 8, 8))], r"shape \[0, 3, 8, 8\], every size must be at least 1 and at most 65536"),
    ],
)
def test_check_refuses_inputs_that_are_no_pictures(
    inputs: list[onnx.ValueInfoProto], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidTeacher, match=said):
        check_onnx(saved(onnx_models.model([FLATTEN, GEMM], inputs, constants=WEIGHT), tmp_path))


def with_outputs(*names: str) -> onnx.ModelProto:
    nodes = [FLATTEN, *(helper.make_node("Gemm", ["flat", "weight"], [name]) for name in names)]
    nodes.append(helper.make_node("Identity", ["images"], ["features"]))
    outputs = [onnx_models.logits(name=name) for name in names] + [onnx_models.logits(("batch", 3, 8, 8), "features")]
    return onnx_models.model(nodes, outputs=outputs, constants=WEIGHT)


def test_check_takes_the_only_output_of_rank_2(tmp_path: Path) -> None:
    assert check_onnx(saved(with_outputs("logits"), tmp_path)).output == "logits"


def test_check_wants_one_of_several_outputs_named(tmp_path: Path) -> None:
    path = saved(with_outputs("logits", "auxiliary"), tmp_path)
    with pytest.raises(InvalidTeacher, match="2 outputs could be the logits: auxiliary, logits"):
        inspect_in_subprocess(path)
    assert inspect_in_subprocess(path, "auxiliary").output == "auxiliary"
    with pytest.raises(InvalidTeacher, match="'features' is not floating point with rank 2"):
        inspect_in_subprocess(path, "features")
    with pytest.raises(
        InvalidTeacher, match=r"'logit' does not exist; the outputs are: logits \(float32 \[batch, 4\]\)"
    ):
        inspect_in_subprocess(path, "logit")
    with pytest.raises(InvalidTeacher, match="does not exist"):
        inspect_in_subprocess(path, "a\0b")


def test_check_refuses_a_graph_without_an_output_of_rank_2(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=r"no output is floating point with rank 2 .* before any ArgMax"):
        check_onnx(saved(with_outputs(), tmp_path))


def test_check_picture_refuses_a_preprocessing_of_another_shape(tmp_path: Path) -> None:
    graph = check_onnx(saved(onnx_models.random_linear(), tmp_path))
    check_picture(graph, channels=3, size=(8, 8), layout="nchw")
    check_picture(graph, channels=3, size=None, layout="nchw")
    for wrong in ({"channels": 1}, {"size": (8, 9)}, {"layout": "nhwc"}):
        with pytest.raises(InvalidTeacher, match=r"the teacher's input is \[batch, 3, 8, 8\].*correct"):
            check_picture(graph, **{"channels": 3, "size": None, "layout": "nchw", **wrong})


# ------------------------------------------------------------------------------------------------ the child process


def test_inspection_of_a_file_that_takes_too_long_is_given_up_and_its_process_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "endless"
    os.mkfifo(pipe)  # to read it is to wait for a writer that never comes
    children = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            children.append(self)

    monkeypatch.setattr(sandbox.subprocess, "Popen", Recorded)
    with pytest.raises(InvalidTeacher, match=r"takes longer than the 1.5 s allowed"):
        inspect_in_subprocess(pipe, timeout_s=1.5)
    assert children[0].returncode == -signal.SIGKILL


def test_inspection_whose_child_crashes_is_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(onnx_models.random_linear(), tmp_path)
    crashing = tmp_path / "crashing"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(InvalidTeacher, match=r"crashes its reader \(SIGSEGV\)"):
        inspect_in_subprocess(path)


@pytest.mark.parametrize("value", [None, [], {"graph": {"inputs": []}}, {"graph": {}, "error": 1}])
def test_inspection_with_an_answer_that_the_check_would_not_give_is_a_refusal(
    value: JsonValue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has taken over its reader may have it say anything."""
    monkeypatch.setattr(sandbox, "call", lambda *_, **__: sandbox.SandboxOutcome(value, None))
    with pytest.raises(InvalidTeacher, match="no answer of ours"):
        inspect_in_subprocess(saved(onnx_models.random_linear(), tmp_path))
