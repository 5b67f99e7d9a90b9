"""Statistics over a whole cache: their values, who may ask for them, and that a run keeps them."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests.support.method_inputs import alone, evaluate, ordinary
from workers.errors import InvalidMethod
from workers.methods.cache_statistics import CONFIDENCE, CONFIDENT, MEANS, SAMPLES, CacheStatistic
from workers.methods.cache_values import ClassConfidence, compute_cache_statistics, record
from workers.methods.catalog import parse_method
from workers.methods.losses import Kl
from workers.methods.method import Method, Term
from workers.methods.policies.expression import Expression
from workers.methods.preview import preview
from workers.objective.objective import objective
from workers.objective.statistics import batch_as_cache, row_statistics

CLASSES = 6


def _rows(seed: int = 0) -> np.ndarray:
    """Logits [V, N, C] of a teacher that never says the last class."""
    logits_VNC = 3 * np.random.default_rng(seed).standard_normal((2, 40, CLASSES)).astype(np.float32)
    logits_VNC[..., -1] -= 30.0
    return logits_VNC


def _statistics(logits_VNC: np.ndarray) -> dict[str, np.ndarray]:
    flat = row_statistics(torch.from_numpy(logits_VNC.reshape(-1, CLASSES)))
    return {name: x_R.numpy().reshape(logits_VNC.shape[:2]) for name, x_R in flat.items()}


def test_class_confidence_is_the_mean_peak_of_the_rows_that_the_teacher_assigns_to_the_class() -> None:
    logits_VNC = _rows()
    flat_RC = logits_VNC.reshape(-1, CLASSES)
    p_RC = softmax(flat_RC.astype(np.float64) / 4.0, axis=1)
    expected = [
        p_RC[flat_RC.argmax(axis=1) == c].max(axis=1).mean() if (flat_RC.argmax(axis=1) == c).any() else 0.0
        for c in range(CLASSES)
    ]
    wanted = [CacheStatistic(CONFIDENCE, 4.0), CacheStatistic(CONFIDENT, 4.0)]
    values = compute_cache_statistics(wanted, {}, list(logits_VNC), CLASSES)
    np.testing.assert_allclose(values[wanted[0]], expected, rtol=1e-6)
    assert values[wanted[0]][-1] == 0.0
    assert values[wanted[1]].tolist() == [c for c in range(CLASSES) if expected[c] >= np.median(expected)]


def test_class_confidence_does_not_depend_on_the_pieces_in_which_rows_come() -> None:
    flat_RC = _rows().reshape(-1, CLASSES)
    together, apart = ClassConfidence(CLASSES, 2.0), ClassConfidence(CLASSES, 2.0)
    together.add(flat_RC)
    for row in range(0, len(flat_RC), 7):
        apart.add(flat_RC[row : row + 7])
    np.testing.assert_allclose(together.values_C, apart.values_C, rtol=1e-6)


def test_cache_statistics_of_rows_are_means_over_all_of_them_or_over_a_samples_views() -> None:
    statistics = _statistics(_rows())
    values = compute_cache_statistics([CacheStatistic(name) for name in (*MEANS, *SAMPLES)], statistics, (), CLASSES)
    for name, values_VN in statistics.items():
        assert values[CacheStatistic(f"{name}_mean")] == pytest.approx(values_VN.mean(), rel=1e-6)
        np.testing.assert_allclose(values[CacheStatistic(f"sample_{name}")], values_VN.mean(axis=0), rtol=1e-6)


def test_cache_statistic_of_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'median' is not known; there are max_mean"):
        CacheStatistic("median")


def test_cache_statistics_are_recorded_in_full_but_for_one_value_a_sample() -> None:
    wanted = [CacheStatistic("std_mean"), CacheStatistic("sample_max"), CacheStatistic(CONFIDENT, 4.0)]
    logits_VNC = _rows()
    values = compute_cache_statistics(wanted, _statistics(logits_VNC), list(logits_VNC), CLASSES)
    kept = record(values)
    assert kept["std_mean"] == pytest.approx(float(values[wanted[0]]))
    assert isinstance(kept["confident_classes(temperature=4)"], list)
    sample = kept["sample_max"]
    assert isinstance(sample, dict)
    assert sample["samples"] == 40


def test_objective_names_a_cache_statistic_that_it_was_not_given() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    with pytest.raises(ValueError, match=r"'lud' reads .*temperature=4\) over the .*whole cache.*batch_as_cache"):
        objective(parse_method("lud").expand(), student_BC, labels_B, epoch=1, teacher_logits_BC=teacher_BC)


@pytest.mark.parametrize("text", ["2 * std / std_mean", "4 + abs(sample_max - max)", "3 + class_confidence"])
def test_expression_reads_statistics_over_the_cache(text: str) -> None:
    logits = ordinary()
    _, teacher_BC, labels_B = logits
    over = {
        each.name: x
        for each, x in batch_as_cache(
            [CacheStatistic(name) for name in ("std_mean", "sample_max", "class_confidence")], teacher_BC
        ).items()
    }
    std_B, max_B = row_statistics(teacher_BC)["std"], row_statistics(teacher_BC)["max"]
    expected_B = {
        "2 * std / std_mean": 2 * std_B / over["std_mean"],
        "4 + abs(sample_max - max)": 4 + (over["sample_max"] - max_B).abs(),
        "3 + class_confidence": 3 + over["class_confidence"][labels_B],
    }[text]
    method = alone(Expression(temperature=text), Kl())
    result, _ = evaluate(method, logits)
    assert isinstance(result.teacher_temperature, torch.Tensor)
    torch.testing.assert_close(result.teacher_temperature, expected_B.double(), rtol=1e-6, atol=1e-6)


def test_expression_over_the_cache_alone_gives_every_row_the_same() -> None:
    result, _ = evaluate(alone(Expression(temperature="2 * std_mean"), Kl()), ordinary())
    assert isinstance(result.teacher_temperature, torch.Tensor)
    assert result.teacher_temperature.shape == (8,)
    assert len(result.teacher_temperature.unique()) == 1


@pytest.mark.parametrize(
    ("text", "reads"), [("max_mean", True), ("4 * sample_std", False), ("class_confidence", False)]
)
def test_expression_over_the_cache_knows_whether_it_reads_the_level(text: str, reads: bool) -> None:
    assert Expression(temperature=text).reads_level is reads


def test_preview_shows_statistics_over_the_cache_and_refuses_the_confidence_of_classes() -> None:
    statistics = _statistics(_rows())
    method = alone(Expression(temperature="5 + sample_max - max + 0 * std_mean"), Kl())
    [term] = preview(method, statistics, CLASSES, epoch=1, epochs=2)
    expected_VN = 5 + statistics["max"].mean(axis=0) - statistics["max"]
    assert term.teacher.mean == pytest.approx(float(expected_VN.mean()), rel=1e-5)
    assert term.teacher.quantiles["p100"] == pytest.approx(float(expected_VN.max()), rel=1e-5)
    with pytest.raises(InvalidMethod, match="reads the confidence of classes"):
        preview(alone(Expression(temperature="4 * class_confidence"), Kl()), statistics, CLASSES, epoch=1, epochs=2)


def test_method_lists_what_its_terms_read_of_the_cache_once() -> None:
    terms = tuple(Term(policy=Expression(temperature="std_mean + max_mean"), name=name) for name in ("a", "b"))
    found = Method(name="probe", terms=terms).cache_statistics
    assert [each.name for each in found] == ["max_mean", "std_mean"]
    assert parse_method("kd").expand().cache_statistics == ()
