"""Teachers as people have them: cached logits equal those of a plain ONNX Runtime script, or there is one refusal.

Each file is made by the tool that makes it in the wild. The network is a convolution whose class k is brightest in the
colour k of a picture, so that the preflight's judgements are the real ones.

Legend: N pictures, K classes of the dataset, C columns of the teacher.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from torch import nn

from store import CacheReader, CacheSpec, CacheWriter
from tests.support.small_teachers import labelled, pictures
from workers.config.teacher import Preprocessing, TeacherReading
from workers.data.preparation.prepared import DecodedDataset
from workers.errors import ContractViolation, InvalidTeacher
from workers.onnx.checks.byte_input import fitted_to_input
from workers.onnx.checks.check import check_onnx
from workers.onnx.uploads.packing import pack
from workers.teacher.inference import infer_blocks
from workers.teacher.teacher import Teacher

COLOURS = ("red", "green", "blue")
SAMPLES = 66
Logits = NDArray[np.float32]
Build = Callable[[Path], Path]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def coloured(names: Sequence[str] = COLOURS) -> DecodedDataset:
    """Noise, brighter in the channel of its class."""
    labels_N = np.arange(SAMPLES) % 3
    images_NHWC = pictures(SAMPLES, seed=1) // 2
    images_NHWC[np.arange(SAMPLES), :, :, labels_N] += 60
    return labelled(images_NHWC, labels_N, tuple(names))


def colour_weights(columns: Sequence[int] = (0, 1, 2), count: int = 3) -> NDArray[np.float32]:
    """Weights [C, 3] of a network whose output ``columns[k]`` is colour k."""
    weights_C3 = np.random.default_rng(2).uniform(-4, -3, (count, 3)).astype(np.float32)
    weights_C3[list(columns)] = 6 * np.eye(3, dtype=np.float32)
    return weights_C3


def network(*tail: nn.Module, columns: Sequence[int] = (0, 1, 2), count: int = 3, flat: bool = True) -> nn.Module:
    """Network in torch: a convolution, the mean over the picture, and ``tail``."""
    convolution = nn.Conv2d(3, count, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(colour_weights(columns, count))[:, :, None, None])
    layers = [convolution, nn.AdaptiveAvgPool2d(1), *([nn.Flatten()] if flat else []), *tail]
    return nn.Sequential(*layers).eval()


def legacy(*tail: nn.Module, **options: object) -> Build:
    """Exported by torch's exporter from before 2.6."""

    def build(folder: Path) -> Path:
        axes = {"images": {0: "n"}, "logits": {0: "n"}}
        torch.onnx.export(
            network(*tail, **options),  # type: ignore[arg-type]
            (torch.zeros(2, 3, 8, 8),),
            folder / "t.onnx",
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=axes,
            dynamo=False,
        )
        return folder / "t.onnx"

    return build


def timm_network(folder: Path) -> Path:
    """A network of timm whose head is fitted to the colours, by torch's exporter from before 2.6."""
    import timm

    torch.manual_seed(0)
    made = timm.create_model("test_resnet", pretrained=False, num_classes=3).eval()
    data = coloured()
    x = torch.from_numpy(prepared(PUBLISHED, data))
    with torch.no_grad():
        features_NF = made.forward_head(made.forward_features(x), pre_logits=True)
        centred_NF = features_NF - features_NF.mean(0)
        wanted_NK = 4 * torch.nn.functional.one_hot(torch.from_numpy(data.labels_N), 3).float()
        made.get_classifier().weight.copy_(torch.linalg.lstsq(centred_NF, wanted_NK).solution.T)
        made.get_classifier().bias.copy_(-made.get_classifier().weight @ features_NF.mean(0))
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    path = folder / "t.onnx"
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(made, (x[:2],), path, dynamic_axes=axes, dynamo=False, **names)
    return path


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Layer whose output k is its input k, or 0 where there is none."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(outputs, inputs))
        layer.bias.zero_()
    return layer


def dynamo(*, external: bool) -> Build:
    """Exported by today's exporter, with the weights beside the file or in it; tiny ones stay in the file."""

    def build(folder: Path) -> Path:
        path = folder / "model.onnx"
        torch.onnx.export(
            network(linear(3, 64), linear(64, 3)),
            (torch.zeros(2, 3, 8, 8),),
            path,
            dynamo=True,
            external_data=external,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
        if external:
            data = folder / "model.onnx.data"
            whole = onnx.load(path)
            assert any(tensor.external_data for tensor in onnx.load(path, load_external_data=False).graph.initializer)
            pack(path, data, data.name, path, bytes_max=1 << 20, timeout_s=60)
            data.unlink()
            kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
            assert kept.keys() == {tensor.name for tensor in whole.graph.initializer}
            assert all((kept[each.name] == numpy_helper.to_array(each)).all() for each in whole.graph.initializer)
        return path

    return build


def by_hand(
    nodes: Sequence[NodeProto],
    *,
    image: tuple[int, Sequence[int | str]] = (TensorProto.FLOAT, ("n", 3, 8, 8)),
    outputs: Sequence[tuple[str, int, Sequence[int | str]]] = (("logits", TensorProto.FLOAT, ("n", 3)),),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    constants: dict[str, NDArray[np.generic]] | None = None,
    metadata: dict[str, str] | None = None,
    columns: Sequence[int] = (0, 1, 2),
    count: int = 3,
) -> Build:
    """Made of nodes, to ``logits`` from ``images``; ``weight`` is [C, 3, 1, 1]."""

    def build(folder: Path) -> Path:
        weight = colour_weights(columns, count)[:, :, None, None]
        held = {"weight": weight, **(constants or {})}
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("images", *image), *inputs],
            [helper.make_tensor_value_info(*each) for each in outputs],
            [numpy_helper.from_array(value, name) for name, value in held.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        helper.set_model_props(made, metadata or {})
        onnx.save(made, folder / "t.onnx")
        return folder / "t.onnx"

    return build


def node(kind: str, given: str, made: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, given.split(), made.split(), **attributes)


CONVOLUTION = (node("Conv", "images weight", "maps"), node("GlobalAveragePool", "maps", "pooled"))
FLAT = (*CONVOLUTION, node("Flatten", "pooled", "z"))
# As tf2onnx leaves a Keras model: channels last outside, channels first within, and a softmax at the end.
NHWC = (
    node("Transpose", "images", "nchw", perm=[0, 3, 1, 2]),
    node("Conv", "nchw weight", "maps"),
    node("GlobalAveragePool", "maps", "pooled"),
    node("Transpose", "pooled", "nhwc", perm=[0, 2, 3, 1]),
    node("Softmax", "nhwc", "logits", axis=-1),
)
# Preprocessing in the graph: bytes in.
BYTES = (
    node("Cast", "images", "float", to=TensorProto.FLOAT),
    node("Div", "float full", "scaled"),
    node("Transpose", "scaled", "nchw", perm=[0, 3, 1, 2]),
    node("Conv", "nchw weight", "maps"),
    node("GlobalAveragePool", "maps", "pooled"),
    node("Flatten", "pooled", "logits"),
)
# skl2onnx: a linear classifier with a label and probabilities, in a list of maps unless told otherwise.
SKLEARN = (
    node("GlobalAveragePool", "images", "colours"),
    node("Flatten", "colours", "X"),
    node(
        "LinearClassifier",
        "X",
        "output_label probabilities",
        classlabels_ints=[0, 1, 2],
        coefficients=[float(value) for value in colour_weights().ravel()],
        intercepts=[0.0] * 3,
        post_transform="SOFTMAX",
        domain="ai.onnx.ml",
    ),
)
LABEL = ("output_label", TensorProto.INT64, ("n",))


def quantised(*, static: bool) -> Build:
    """Made int8 by ``onnxruntime.quantization``."""

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"images": prepared(PLAIN, coloured())}]

        def get_next(self) -> dict[str, Logits] | None:
            return self.left.pop() if self.left else None

    def build(folder: Path) -> Path:
        source = legacy(linear(3, 3))(folder)
        to = folder / "int8.onnx"
        if static:
            quantize_static(source, to, Batches())
        else:
            quantize_dynamic(source, to)
            assert any(each.op_type == "DynamicQuantizeLinear" for each in onnx.load(to).graph.node)
        return to

    return build


# As timm's config.json has it.
PUBLISHED = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
LAST = PLAIN.model_copy(update={"layout": "nhwc"})


def prepared(preprocessing: Preprocessing, data: DecodedDataset) -> NDArray[np.number]:
    """Input of a plain script."""
    x = data.images_NHWC.astype(np.float32) * np.float32(preprocessing.scale)
    x = (x - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    return np.ascontiguousarray(x if preprocessing.layout == "nhwc" else x.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class Form:
    """A file, what is stated of it, and how a plain script makes logits of its output.

    Attributes:
        said: in a warning of the preflight.
    """

    build: Build
    logits: Callable[[Logits], Logits] = lambda output: output
    preprocessing: Preprocessing = PLAIN
    reading: dict[str, object] = field(default_factory=dict)
    output: str | None = None
    names: Sequence[str] = COLOURS
    said: str = ""
    stored: str = "logits"
    columns: tuple[int, ...] | None = None
    alone: bool = False


def log(output: Logits) -> Logits:
    return np.log(output)


def pick(*columns: int) -> Callable[[Logits], Logits]:
    return lambda output: output[:, columns]


SYNSETS = [f"n{10_000_000 + k} name {k}, other {k}" for k in range(1000)]
CHOSEN = (207, 3, 999)
FORMS = {
    "torch, legacy exporter": Form(legacy()),
    "torch, today's exporter, external data": Form(dynamo(external=True)),
    "float16": Form(
        by_hand(
            [*FLAT[:-1], node("Flatten", "pooled", "logits")],
            image=(TensorProto.FLOAT16, ("n", 3, 8, 8)),
            outputs=[("logits", TensorProto.FLOAT16, ("n", 3))],
            constants={"weight": colour_weights()[:, :, None, None].astype(np.float16)},
        )
    ),
    "[N, C, 1, 1]": Form(legacy(flat=False), lambda output: output[:, :, 0, 0]),
    "softmax": Form(legacy(nn.Softmax(1)), log, said="ends in a softmax", stored="log_probabilities"),
    "log-softmax": Form(legacy(nn.LogSoftmax(1)), said="ends in a log-softmax"),
    "sigmoid": Form(
        legacy(nn.Sigmoid()), lambda p: np.log(p) - np.log(1 - p), said="ends in a sigmoid", stored="sigmoid"
    ),
    "sigmoid, stated": Form(
        by_hand([*FLAT, node("Sigmoid", "z", "p"), node("Mul", "p one", "logits")], constants={"one": np.float32([1])}),
        lambda p: np.log(p) - np.log(1 - p),
        reading={"output_kind": "sigmoid"},
        stored="sigmoid",
    ),
    "percent": Form(
        by_hand(
            [*FLAT, node("Softmax", "z", "p"), node("Mul", "p full", "logits")], constants={"full": np.float32([100])}
        ),
        lambda output: np.log(output / 100),
        said="outputs are percent",
        stored="percent",
    ),
    "tf2onnx, channels last, [N, 1, 1, C]": Form(
        by_hand(
            NHWC,
            image=(TensorProto.FLOAT, ("n", 8, 8, 3)),
            outputs=[("logits", TensorProto.FLOAT, ("n", 1, 1, 3))],
        ),
        lambda output: np.log(output[:, 0, 0]),
        LAST,
        stored="log_probabilities",
    ),
    "bytes in": Form(
        by_hand(BYTES, image=(TensorProto.UINT8, ("n", 8, 8, 3)), constants={"full": np.float32([255])}),
        preprocessing=Preprocessing(layout="nhwc"),
    ),
    "several outputs": Form(
        by_hand(
            [*CONVOLUTION, node("Flatten", "pooled", "logits"), node("ArgMax", "logits", "label", axis=1)],
            outputs=[
                ("label", TensorProto.INT64, ("n", 1)),
                ("pooled", TensorProto.FLOAT, ("n", 3, 1, 1)),
                ("logits", TensorProto.FLOAT, ("n", 3)),
            ],
        )
    ),
    "skl2onnx without zipmap": Form(
        by_hand(SKLEARN, outputs=[LABEL, ("probabilities", TensorProto.FLOAT, ("n", 3))]),
        log,
        output="probabilities",
        stored="log_probabilities",
    ),
    "scalar inputs": Form(
        by_hand(
            [*FLAT, node("Mul", "z keep_prob", "kept"), node("Mul", "kept scale", "logits")],
            inputs=[
                helper.make_tensor_value_info("keep_prob", TensorProto.FLOAT, []),
                helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]),
            ],
            constants={"scale": np.float32([0.5])},
        ),
        reading={"input_values": {"keep_prob": 3.0}},
    ),
    "dynamic int8": Form(quantised(static=False), alone=True, said="one picture at a time"),
    "static int8": Form(quantised(static=True)),
    "classes in another order": Form(
        legacy(columns=(2, 0, 1)),
        pick(2, 0, 1),
        reading={"class_names": ["Green", "blue", "RED"]},
        said="matched by name, in another order: 'red' is column 2 ('RED')",
        columns=(2, 0, 1),
    ),
    "1,000 classes by WordNet ids in the metadata": Form(
        by_hand(
            [*FLAT[:-1], node("Flatten", "pooled", "logits")],
            outputs=[("logits", TensorProto.FLOAT, ("n", 1000))],
            metadata={"names": str(dict(enumerate(SYNSETS)))},
            columns=CHOSEN,
            count=1000,
        ),
        pick(*CHOSEN),
        names=[SYNSETS[k][:9] for k in CHOSEN],
        said="matched by name, 3 of the teacher's 1000",
        columns=CHOSEN,
    ),
    "1,000 probabilities by names": Form(
        legacy(nn.Softmax(1), columns=CHOSEN, count=1000),
        lambda p: np.log(p[:, CHOSEN] / p[:, CHOSEN].sum(axis=1, keepdims=True)),
        names=["name 207", "Other 3", "the last"],
        reading={"class_names": SYNSETS, "class_map": {"the last": 999}},
        columns=CHOSEN,
        stored="log_probabilities",
    ),
}


# Importing today's exporter takes four seconds, timm as long.
SLOW_FORMS = {
    "torch, today's exporter": Form(dynamo(external=False)),
    "timm": Form(timm_network, preprocessing=PUBLISHED),
}
PARAMS = [
    *(pytest.param(form, id=name) for name, form in FORMS.items()),
    *(pytest.param(form, id=name, marks=pytest.mark.slow) for name, form in SLOW_FORMS.items()),
]


@pytest.mark.parametrize("form", PARAMS)
def test_cached_logits_equal_a_plain_script(form: Form, tmp_path: Path) -> None:
    path, data = form.build(tmp_path), coloured(form.names)
    reading = TeacherReading.model_validate(form.reading)
    graph = check_onnx(path, form.output, reading.input_values)
    preprocessing = fitted_to_input(form.preprocessing, graph)
    teacher = Teacher(path, preprocessing, form.output, reading=reading, threads=1, device="cpu")
    report = teacher.run_preflight(data)
    assert form.said in " ".join(report.warnings)
    assert (report.accuracy, report.output_kind, report.columns) == (1.0, form.stored, form.columns)

    spec = CacheSpec(
        teacher_sha256="e" * 64,
        teacher_output=report.output,
        output_kind=report.output_kind,
        dataset_fingerprint=data.fingerprint,
        split="train",
        samples=SAMPLES,
        classes=3,
        preprocessing=preprocessing.model_dump(mode="json"),
        augmentation={"recipe": "none"},
        augmentation_seed=0,
        views=1,
        dtype="float32",
        columns=report.columns,
        teacher_inputs=reading.input_values,
    )
    writer = CacheWriter(tmp_path / "caches", spec)
    infer_blocks(teacher, data, writer, writer.pending_blocks(), batch_size=32)
    writer.finish()
    cached_NK = CacheReader(writer.root, spec).logits(0)

    held = {each.name: np.full(each.shape, each.value, each.dtype) for each in graph.fixed}
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = data.images_NHWC if graph.takes_bytes else prepared(preprocessing, data)
    x = x.astype(graph.inputs[0].dtype)
    parts = np.split(x, len(x)) if form.alone else [x]
    outputs = [plain.run([report.output], {graph.inputs[0].name: part, **held})[0] for part in parts]
    np.testing.assert_allclose(cached_NK, form.logits(np.concatenate(outputs)), rtol=1e-4, atol=1e-4)


NAMED = TeacherReading(class_names=("red", "green", "teal"))
ZIPMAP = by_hand(
    [
        *SKLEARN,
        node("ZipMap", "probabilities", "output_probability", classlabels_int64s=[0, 1, 2], domain="ai.onnx.ml"),
    ],
    outputs=[LABEL],
)


def with_zipmap(folder: Path) -> Path:
    path = ZIPMAP(folder)
    made = onnx.load(path)
    each = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    made.graph.output.append(helper.make_value_info("output_probability", helper.make_sequence_type_proto(each)))
    onnx.save(made, path)
    return path


KEEP_PROB = by_hand(
    [*FLAT, node("Mul", "z keep_prob", "logits")],
    inputs=[helper.make_tensor_value_info("keep_prob", TensorProto.FLOAT, [])],
)
TWO_LOGITS = by_hand(
    [*FLAT, node("Identity", "z", "logits"), node("Neg", "z", "aux")],
    outputs=[("logits", TensorProto.FLOAT, ("n", 3)), ("aux", TensorProto.FLOAT, ("n", 3))],
)
VECTORS = by_hand(
    [node("Identity", "images", "logits")],
    image=(TensorProto.FLOAT, ("n", 3)),
)
REFUSALS: dict[str, tuple[Build, TeacherReading, str]] = {
    "skl2onnx with zipmap": (with_zipmap, TeacherReading(), r"output_probability \(sequence .*'zipmap': False"),
    "a classifier of vectors": (VECTORS, TeacherReading(), "rank 2 .* put a Flatten of the pictures before it"),
    "a scalar input without a value": (
        KEEP_PROB,
        TeacherReading(),
        r"'keep_prob' \(float32 \[\]\) .* has no default: state its value in `input_values`, {\"keep_prob\": 1.0}",
    ),
    "a value of another type": (
        KEEP_PROB,
        TeacherReading(input_values={"keep_prob": True}),
        "states True for 'keep_prob', which is float32",
    ),
    "a value for no input": (legacy(), TeacherReading(input_values={"p": 1}), "states a value for p, the graph has"),
    "two outputs": (TWO_LOGITS, TeacherReading(), "2 outputs could be the logits: aux, logits. Name the right one"),
    "a dataset with a class more": (legacy(), NAMED, "has 1 classes that the teacher lacks: 'blue'.*class_map"),
    "names of another number": (
        legacy(),
        TeacherReading(class_names=("red", "green")),
        "class_names has 2 names, the teacher's output has 3 columns",
    ),
    "a name twice": (
        legacy(),
        TeacherReading(class_names=("red, blue", "green", "blue, azure")),
        r"'blue' fits several columns of the teacher: 0 \('red, blue'\), 2 .*class_map",
    ),
    "a column twice": (
        legacy(),
        TeacherReading(class_names=COLOURS, class_map={"blue": "green"}),
        r"column 1 \('green'\) of the teacher fits two classes of the dataset, 'green' and 'blue'",
    ),
    "another kind than stated": (
        legacy(),
        TeacherReading(output_kind="probabilities"),
        "output_kind is 'probabilities', but its outputs .* lie between",
    ),
}


@pytest.mark.parametrize(("build", "reading", "said"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_has_the_next_step(build: Build, reading: TeacherReading, said: str, tmp_path: Path) -> None:
    path = build(tmp_path)
    with pytest.raises((InvalidTeacher, ContractViolation), match=said):
        Teacher(path, PLAIN, reading=reading, threads=1, device="cpu").run_preflight(coloured())


def test_byte_input_refuses_a_scaling(tmp_path: Path) -> None:
    path = FORMS["bytes in"].build(tmp_path)
    with pytest.raises(InvalidTeacher, match=r"'images' is uint8: its scaling is in the graph.*`scale` 1\.0"):
        Teacher(path, LAST, threads=1, device="cpu")
    published = Preprocessing.model_validate("imagenet")
    left = r'out of the upload.s preprocessing, {"size": \[224, 224\], "resize": 256, "interpolation": "bilinear"}, or'
    with pytest.raises(InvalidTeacher, match=left):
        Teacher(path, published, threads=1, device="cpu")


def test_metadata_that_names_no_class_of_the_dataset_leaves_the_order(tmp_path: Path) -> None:
    build = by_hand(
        [*FLAT[:-1], node("Flatten", "pooled", "logits")], metadata={"class_names": json.dumps(["a", "b", "c"])}
    )
    report = Teacher(build(tmp_path), PLAIN, threads=1, device="cpu").run_preflight(coloured())
    assert report.columns is None
    assert "('a', 'b', 'c') are none of the dataset's ('red', 'green', 'blue')" in report.warnings[0]
