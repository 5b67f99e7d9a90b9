"""Preflight: which teachers are refused on a few rows, which are warned of, and what the messages recognise."""

import math
import re
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from pydantic import ValidationError

from tests.support import onnx_models
from tests.support.small_teachers import PLAIN, labelled, pictures, teacher
from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import DecodedDataset
from workers.errors import ContractViolation, InvalidTeacher, NotFinite
from workers.teacher.preflight import check
from workers.teacher.preflight.check import ALONE_ROWS
from workers.teacher.preflight.class_order import best_assignment
from workers.teacher.preflight.report import PreflightReport
from workers.teacher.preflight.rows import BATCH_PIXELS, ROWS_MAX, slice_rows, spread
from workers.teacher.preflight.score import Score, binomial_tail
from workers.teacher.teacher import Teacher

CIFAR = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))

COLOURS = ("blue", "green", "red")


def coloured(count: int = 300) -> DecodedDataset:
    """Pictures whose class is their strongest channel, in alphabetical order of its name."""
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 3
    images = rng.integers(0, 160, (count, 8, 8, 3), dtype=np.uint8)
    images[np.arange(count), :, :, 2 - labels] += 90
    return labelled(images, labels, COLOURS)


def sees_colour(order: tuple[int, int, int] = (2, 1, 0), **options: object) -> onnx.ModelProto:
    """Logit k is the sum of channel ``order[k]``, in tens, over the picture's average."""
    weight_PN = np.zeros((3, 64, 3))
    for k, channel in enumerate(order):
        weight_PN[channel, :, k] = 10 / 64
    return onnx_models.linear(weight_PN.reshape(192, 3), **options)


def test_preflight_reports_a_teacher_that_fits(tmp_path: Path) -> None:
    session = teacher(sees_colour(), tmp_path)
    report = session.run_preflight(coloured(), rows=100)
    assert (report.rows, report.classes, report.output, report.output_kind) == (100, 3, "logits", "logits")
    assert report.accuracy == 1.0
    assert report.chance == pytest.approx(1 / 3, abs=0.01)
    assert report.batch_difference <= report.batch_tolerance
    assert report.forwards == 1 + 100 + 4 + 64
    assert report.provider == "CPUExecutionProvider"
    assert report.warnings == ()
    assert not report.normalised
    assert PreflightReport.model_validate_json(report.model_dump_json()) == report


def test_preflight_takes_few_large_pictures_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many go into the slice, and into each of the other preprocessings that are tried."""
    small = coloured(48)
    images = np.broadcast_to(small.images_NHWC[:, :1, :1], (48, 512, 1024, 3))
    session = teacher(sees_colour((0, 1, 2)), tmp_path, PLAIN.model_copy(update={"size": (8, 8)}))
    given = []
    outputs = session.outputs
    monkeypatch.setattr(
        session, "outputs", lambda images, *args, **kw: given.append(images) or outputs(images, *args, **kw)
    )
    report = session.run_preflight(labelled(images, small.labels_N, COLOURS), rows=48, accept=True)
    assert "The preprocessing seems to be another: with channels='bgr'" in report.refusals[0]
    assert max(images.nbytes for images in given) == 4 * BATCH_PIXELS * 3
    assert report.forwards == sum(map(len, given))


def test_preflight_finds_a_softmax_in_the_graph_and_takes_its_log(tmp_path: Path) -> None:
    expected = teacher(sees_colour(), tmp_path).logits(coloured().images_NHWC[:7])
    session = teacher(sees_colour(tail=["Softmax"]), tmp_path)
    report = session.run_preflight(coloured())
    assert report.output_kind == session.output_kind == "log_probabilities"
    assert report.normalised
    assert "softmax" in report.warnings[0]
    logits = session.logits(coloured().images_NHWC[:7])
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-4)


def test_preflight_keeps_a_log_softmax_as_it_is(tmp_path: Path) -> None:
    report = teacher(sees_colour(tail=["LogSoftmax"]), tmp_path).run_preflight(coloured())
    assert report.output_kind == "logits"
    assert report.normalised
    assert "log-softmax" in report.warnings[0]


def test_preflight_record_that_does_not_say_whether_outputs_are_normalised_is_none(tmp_path: Path) -> None:
    """Of a version that did not look: read as a plain teacher's, DTKD would be plain KD on it without a word."""
    report = teacher(sees_colour(tail=["LogSoftmax"]), tmp_path).run_preflight(coloured())
    assert PreflightReport.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(ValidationError, match="normalised"):
        PreflightReport.model_validate_json(report.model_dump_json(exclude={"normalised"}))


@pytest.mark.parametrize("declared", [True, False])
def test_preflight_refuses_another_class_count_with_both_numbers(declared: bool, tmp_path: Path) -> None:
    built = onnx_models.random_linear(4)
    if not declared:
        built.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    with pytest.raises(ContractViolation, match="has 4 classes, the dataset has 3"):
        teacher(built, tmp_path).run_preflight(coloured())


def test_preflight_refuses_outputs_that_are_no_numbers_with_the_sample(tmp_path: Path) -> None:
    data = coloured(30)
    data.images_NHWC[20] = 0  # the logarithm of its zeros is not finite
    built = sees_colour()
    built.graph.node.insert(0, helper.make_node("Log", ["images"], ["log"]))
    built.graph.node[1].input[0] = "log"
    data.images_NHWC[:20] |= 1
    data.images_NHWC[21:] |= 1
    with pytest.raises(NotFinite, match="for 1 of 30 pictures, the first is sample 20"):
        teacher(built, tmp_path).run_preflight(data)


def sees_colour_through(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """``sees_colour``, whose outputs ``z`` these nodes make ``logits`` of."""
    built = sees_colour()
    built.graph.node[1].output[0] = "z"
    built.graph.node.extend(nodes)
    return built


def test_preflight_refuses_a_graph_that_mixes_the_pictures_of_a_batch(tmp_path: Path) -> None:
    """Batch normalisation in training mode, built of operators that no rule about attributes can see."""
    built = sees_colour_through(
        helper.make_node("ReduceMean", ["z"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["z", "mean"], ["logits"]),
    )
    with pytest.raises(InvalidTeacher, match=r"alone than in a batch of 256 .*has ReduceMean: over axis 0, the batch"):
        teacher(built, tmp_path).run_preflight(coloured())


def test_preflight_refuses_a_graph_that_answers_by_chance(tmp_path: Path) -> None:
    built = sees_colour_through(
        helper.make_node("RandomNormalLike", ["z"], ["noise"]),
        helper.make_node("Add", ["z", "noise"], ["logits"]),
    )
    with pytest.raises(InvalidTeacher, match=r"other outputs alone than in a batch .* has RandomNormalLike: drawn"):
        teacher(built, tmp_path).run_preflight(coloured())


def test_preflight_refuses_a_graph_that_answers_by_the_place_in_the_batch(tmp_path: Path) -> None:
    """One place, at which none of the pictures that are also run alone stands: the second run finds it."""
    built = sees_colour_through(
        helper.make_node("Shape", ["z"], ["rows"], start=0, end=1),
        helper.make_node("Squeeze", ["rows"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["places"]),
        helper.make_node("Equal", ["places", "place"], ["is_there"]),
        helper.make_node("Cast", ["is_there"], ["extra"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["extra", "axis"], ["extra_column"]),
        helper.make_node("Add", ["z", "extra_column"], ["logits"]),
    )
    held = {"zero": np.array(0), "one": np.array(1), "place": np.array(5), "axis": np.array([1])}
    built.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in held.items())
    assert 5 not in spread(300, ALONE_ROWS)
    with pytest.raises(InvalidTeacher, match=r"of 64 pictures give other outputs when they are run again, in another"):
        teacher(built, tmp_path).run_preflight(coloured())


def test_preflight_refuses_a_graph_quantised_by_the_batch_with_the_operator(tmp_path: Path) -> None:
    """One scale for all pictures: with eight bits it changes a picture's outputs by more than rounding does.

    A graph that takes any number of pictures is given one at a time instead.
    """
    built = sees_colour_through(
        helper.make_node("DynamicQuantizeLinear", ["z"], ["q", "scale", "zero"], name="z_quantised"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
    )
    report = teacher(built, tmp_path).run_preflight(coloured())
    assert report.batch_difference == 0
    assert "runs on one picture at a time, " in report.warnings[0]
    assert "The graph has DynamicQuantizeLinear 'z_quantised': its scale is taken over the batch" in report.warnings[0]
    for value in (built.graph.input[0], built.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 60
    with pytest.raises(InvalidTeacher, match="has DynamicQuantizeLinear 'z_quantised': its scale is taken over the"):
        teacher(built, tmp_path).run_preflight(coloured())


def test_preflight_refuses_and_recognises_another_label_order(tmp_path: Path) -> None:
    session = teacher(sees_colour((1, 0, 2)), tmp_path)
    with pytest.raises(ContractViolation, match="label order or its preprocessing does not fit") as caught:
        session.run_preflight(coloured())
    assert "right on 0 of 300 labelled pictures (0.0%), guessing would be on 33.3%" in str(caught.value)
    assert "its class 0 is mostly 'green' (class 1 here), its class 1 is mostly 'red'" in str(caught.value)
    assert "with its classes so matched, 100.0% of 300 pictures are right" in str(caught.value)


def test_preflight_refuses_and_recognises_swapped_channels(tmp_path: Path) -> None:
    swapped = PLAIN.model_copy(update={"channels": "bgr"})
    with pytest.raises(ContractViolation, match=r"with channels='rgb', 100\.0% of 300 pictures are right"):
        teacher(sees_colour(), tmp_path, swapped).run_preflight(coloured())


def bright(count: int = 200) -> DecodedDataset:
    labels = np.arange(count) % 2
    images = pictures(count, seed=4) // 4 + (labels * 120).astype(np.uint8)[:, None, None, None]
    return labelled(images, labels, ("dark", "light"))


def sees_brightness() -> onnx.ModelProto:
    """Light is a mean above 0.4 of the full scale."""
    weight_PN = np.full((192, 2), 1 / 192) * [-1, 1]
    return onnx_models.linear(weight_PN, np.array([0.4, -0.4]))


def test_preflight_refuses_and_recognises_a_wrong_scale(tmp_path: Path) -> None:
    unscaled = PLAIN.model_copy(update={"scale": 1.0})
    with pytest.raises(ContractViolation, match=r"with scale=0\.003922, 100\.0% of 200 pictures are right"):
        teacher(sees_brightness(), tmp_path, unscaled).run_preflight(bright())


def test_preflight_refuses_a_preprocessing_that_costs_few_points(tmp_path: Path) -> None:
    data = bright()
    data.images_NHWC[::8] *= 2  # dark ones that the wrong mean takes for light
    shifted = PLAIN.model_copy(update={"mean": (-0.2,) * 3})
    session = teacher(sees_brightness(), tmp_path, shifted)
    report = session.run_preflight(data, accept=True)
    assert report.accuracy == 0.875
    assert report.forwards > report.rows + 200
    (refusal,) = report.refusals
    assert "with mean=[0, 0, 0], 100.0% of 200 pictures are right, with the given mean=[-0.2, -0.2, -0.2]" in refusal
    with pytest.raises(ContractViolation, match=re.escape(refusal) + r' `"accept_teacher": true` in the job'):
        session.run_preflight(data)


def levels(names: Sequence[str], per_class: int) -> DecodedDataset:
    """Pictures of one brightness each; the class of the brightness k of so many is ``names[k]``, in order of text."""
    levels_R = np.repeat(np.arange(len(names)), per_class)
    images = np.full((len(levels_R), 8, 8, 3), ((levels_R + 0.5) / len(names) * 255)[:, None, None, None])
    numbers = {name: k for k, name in enumerate(sorted(names))}
    labels = np.array([numbers[names[k]] for k in levels_R])
    return labelled(images.astype(np.uint8), labels, tuple(sorted(names)))


def sees_level(classes: int, **options: object) -> onnx.ModelProto:
    """Its class k is the brightness k of so many: the logit is -(x - level)^2 in tens of thousands, less x^2."""
    level_N = (np.arange(classes) + 0.5) / classes
    return onnx_models.linear(np.ones((192, 1)) / 192 * 2e4 * level_N, -1e4 * level_N**2, **options)


NUMBERS = [str(k) for k in range(12)]
LETTERS = [chr(ord("a") + k) for k in range(12)]


@pytest.mark.parametrize(
    ("names", "per_class", "found"),
    [
        (NUMBERS, 2, "with the class names in the order of their numbers ('0', '1', '2', '3', ...), 100.0% of 24"),
        (NUMBERS, 60, "with the class names in the order of their numbers ('0', '1', '2', '3', ...), 100.0% of 512"),
        (["a", "B", "c", "D", "e"], 9, "with the class names sorted regardless of case ('a', 'B', 'c', 'D', ...), 1"),
        (["f", "z", "e\u0301"], 20, "with the class names sorted as Unicode composes them ('f', 'z', 'e\u0301'), 1"),
        (
            ["\u00e9", "f", "z"],
            20,
            "with the class names sorted as macOS spells them, decomposed ('\u00e9', 'f', 'z'), 1",
        ),
        (["b", "a", *LETTERS[2:]], 10, "its class 0 is mostly 'b' (class 1 here), its class 1 is mostly 'a' (class 0"),
    ],
)
def test_preflight_refuses_classes_in_an_order_that_differs_in_part(
    names: list[str], per_class: int, found: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ContractViolation, match=r'Upload the teacher with its `class_names`.* or rename .*"accept_teacher": true'
    ) as error:
        teacher(sees_level(len(names)), tmp_path).run_preflight(levels(names, per_class))
    assert found in str(error.value)


def test_best_assignment_moves_only_classes_that_the_rows_show() -> None:
    """And needs no matrix of all classes."""
    preferred_N = np.roll(np.arange(50_000), 1)
    predicted_R = np.array([7, 7, 7, 8, 8, 9, 40_000])
    order_N = best_assignment(Score(predicted_R, np.array([5, 5, 6, 6, 6, 8, 3]), 50_000), preferred_N)
    assert order_N[[7, 8, 9, 40_000]].tolist() == [5, 6, 8, 3]
    np.testing.assert_array_equal(np.sort(order_N), np.arange(50_000))
    assert np.flatnonzero(order_N != preferred_N).tolist() == [4, 6, 7, 8, 40_000]


def test_preflight_passes_a_weak_teacher_in_the_right_order(tmp_path: Path) -> None:
    """Thirty classes, taken for their neighbours: the best order of one half of the rows is no better on the other."""
    data = levels([f"{k:02}" for k in range(30)], 10)
    noise = np.random.default_rng(0).normal(0, 25, (300, 1, 1, 1))
    noisy = (data.images_NHWC + noise).clip(0, 255).astype(np.uint8)
    report = teacher(sees_level(30), tmp_path).run_preflight(labelled(noisy, data.labels_N, data.class_names))
    assert report.chance < 0.04 < 0.1 < report.accuracy < 0.2
    assert (report.refusals, report.warnings) == ((), ())


def test_preflight_warns_of_numbers_in_the_order_of_text(tmp_path: Path) -> None:
    """Even where the teacher was trained on the same order."""
    data = levels(sorted(NUMBERS), 3)
    report = teacher(sees_level(12), tmp_path).run_preflight(data)
    assert report.accuracy == 1
    (warning,) = report.warnings
    assert "not in their order ('0', '1', '10', '11', ...): class 2 is '10'" in warning


def test_preflight_warns_of_classes_whose_names_look_alike(tmp_path: Path) -> None:
    report = teacher(sees_level(3), tmp_path).run_preflight(levels(["Cat", "cat", "dog"], 6))
    assert report.warnings == ("classes that look alike: 'Cat' and 'cat' differ only in case",)


def test_preflight_leaves_an_accepted_refusal_to_its_caller(tmp_path: Path) -> None:
    report = teacher(sees_level(12), tmp_path).run_preflight(levels(NUMBERS, 6), accept=True)
    assert report.accuracy == pytest.approx(1 / 6)
    (refusal,) = report.refusals
    assert report.accepted == (f"{refusal} It is used as it is, for the job says accept_teacher",)
    report.enforce(True)
    with pytest.raises(ContractViolation, match="label order seems to differ"):
        report.enforce(False)


def test_preflight_passes_a_good_teacher_of_a_rare_class(tmp_path: Path) -> None:
    """Right on 198 of 200 and on 2 of 2; without the picture, the same predictions would be right on 97.1 %."""
    data = bright(400)
    rows = np.concatenate([np.arange(0, 400, 2), [1, 3]])
    images = data.images_NHWC[rows]
    images[:2] += 120
    rare = labelled(images, data.labels_N[rows], data.class_names)
    report = teacher(sees_brightness(), tmp_path).run_preflight(rare)
    assert (report.accuracy, report.chance) == (pytest.approx(200 / 202), pytest.approx(0.971, abs=5e-4))


@pytest.mark.parametrize(
    ("tail", "factor", "told"),
    [
        (["Sigmoid"], 1, "are all between 0 and 1 and the rows sum to .*: they are what a sigmoid makes"),
        (["Softmax"], 50, r"each row sums to 50: they are scaled probabilities \(percent"),
    ],
)
def test_preflight_refuses_outputs_that_are_no_logits(tail: list[str], factor: int, told: str, tmp_path: Path) -> None:
    built = sees_colour(tail=tail)
    built.graph.node[-1].output[0] = "probability"
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    built.graph.node.append(helper.make_node("Mul", ["probability", "factor"], ["logits"]))
    session = teacher(built, tmp_path)
    with pytest.raises(ContractViolation, match=told + ".*Export the logits.*accept_teacher"):
        session.run_preflight(coloured())
    assert len(session.run_preflight(coloured(), accept=True).refusals) == 1
    assert session.output_kind == "logits"


def test_preflight_refuses_labels_without_sense_without_a_hint(tmp_path: Path) -> None:
    data = coloured()
    shuffled = labelled(data.images_NHWC, np.random.default_rng(0).permutation(data.labels_N), COLOURS)
    with pytest.raises(ContractViolation, match="No usual preprocessing does better"):
        teacher(sees_colour(), tmp_path).run_preflight(shuffled)


def test_preflight_takes_the_commonest_class_always_for_chance(tmp_path: Path) -> None:
    data = coloured()
    unbalanced = labelled(data.images_NHWC, np.where(np.arange(300) % 10, 1, 2), COLOURS)
    constant = onnx_models.linear(np.zeros((192, 3)), np.array([0.0, 1.0, 0.0]))
    with pytest.raises(ContractViolation, match=r"right on 270 of 300 .*guessing would be on 90\.0%"):
        teacher(constant, tmp_path).run_preflight(unbalanced)


def test_preflight_stops_a_graph_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "FIRST_TIMEOUT_S", 0.3)
    built = sees_colour()
    built.graph.node[1].output[0] = "z"
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["on"]), helper.make_node("Cos", ["again"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("again", TensorProto.FLOAT, ("batch", 3)),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ("batch", 3)),
        ],
    )
    built.graph.node.append(helper.make_node("Loop", ["often", "true", "z"], ["logits"], body=body))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 << 62), "often"))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "true"))
    session = teacher(built, tmp_path)
    with pytest.raises(InvalidTeacher, match="did not finish 1 pictures in the time allowed"):
        session.run_preflight(coloured())


def test_binomial_tail_is_the_sum_it_stands_for() -> None:
    for rows, chance, hits in ((10, 0.3, 4), (512, 0.1, 68), (7, 0.5, 7), (5, 0.25, 0)):
        exact = sum(math.comb(rows, k) * chance**k * (1 - chance) ** (rows - k) for k in range(hits, rows + 1))
        assert binomial_tail(hits, rows, chance) == pytest.approx(exact, rel=1e-9)
    assert binomial_tail(3, 10, 0.0) == 0
    assert binomial_tail(3, 10, 1.0) == 1


def test_score_of_too_few_rows_is_explained_by_chance_only_at_chance() -> None:
    outputs_RN = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    assert not Score.of(outputs_RN, np.array([0, 1, 0, 0])).explained_by_chance
    assert Score.of(outputs_RN, np.array([0, 1, 1, 0])).explained_by_chance


def test_score_of_one_class_that_is_all_right_is_not_explained_by_chance() -> None:
    assert not Score.of(np.eye(2, dtype=np.float32)[[0] * 40], np.zeros(40, np.int64)).explained_by_chance


def test_spread_covers_the_whole_dataset() -> None:
    rows = spread(51_200, 512)
    np.testing.assert_array_equal(rows // 100, np.arange(512))
    np.testing.assert_array_equal(rows, spread(51_200, 512))
    np.testing.assert_array_equal(spread(3, 512), [0, 1, 2])
    for labels in (np.repeat(np.arange(100), 512), np.arange(51_200) % 100):
        assert len(np.unique(labels[rows])) > 90


def test_slice_rows_has_rows_of_every_class_and_an_end() -> None:
    """It grows with the classes, and takes more of the rare ones than their share."""
    labels = np.zeros(100_000, np.int64)
    labels[70_000:70_004], labels[80_000:80_050] = 1, 2
    rows = slice_rows(labels, 3, 512)
    np.testing.assert_array_equal(np.bincount(labels[rows])[1:], [4, 10])
    assert 512 <= len(np.unique(rows)) == len(rows) < 530
    labels = np.repeat(np.arange(100), 1000)
    assert np.bincount(labels[slice_rows(labels, 100, 512)]).min() >= 10
    assert len(slice_rows(labels, 100, 512)) == 1000
    assert len(slice_rows(np.repeat(np.arange(1000), 100), 1000, 512)) == ROWS_MAX


# ------------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def cifar_test_slice(shared_data: Path) -> DecodedDataset:
    """Thirty test pictures of each class of CIFAR-10."""
    images, labels = [], []
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[0] == "test" and int(Path(parts[2]).stem) < 30:
                content = archive.extractfile(member)
                assert content is not None
                images.append(np.asarray(Image.open(BytesIO(content.read()))))
                labels.append(parts[1])
    names, numbers = np.unique(labels, return_inverse=True)
    return labelled(np.stack(images), numbers, tuple(map(str, names)))


def test_preflight_passes_a_published_teacher_with_its_accuracy(
    shared_data: Path, cifar_test_slice: DecodedDataset
) -> None:
    session = Teacher(shared_data / "resnet20-cifar10.onnx", CIFAR, threads=2, device="cpu")
    report = session.run_preflight(cifar_test_slice)
    assert report.rows == 300
    assert 0.76 < report.accuracy < 0.86
    assert report.output_kind == "logits"
    assert report.warnings == ()


def test_preflight_refuses_a_published_teacher_with_its_classes_in_another_order(
    shared_data: Path, cifar_test_slice: DecodedDataset
) -> None:
    data = cifar_test_slice
    turned = labelled(data.images_NHWC, (data.labels_N + 1) % 10, data.class_names)
    session = Teacher(shared_data / "resnet20-cifar10.onnx", CIFAR, threads=2, device="cpu")
    with pytest.raises(ContractViolation, match=r"label order seems to differ: its class 0 is mostly 'automobile'"):
        session.run_preflight(turned)
