"""LUD is the reading in its docstring: checked against that reading written a second time, with numpy and scipy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import pearsonr, rankdata, spearmanr

from tests.support.method_inputs import EDGES, Logits, evaluate, ordinary
from workers.methods.catalog import parse_method
from workers.methods.losses import Lud
from workers.methods.method import Method, Term
from workers.objective import rank_correlation
from workers.objective.objective import objective
from workers.objective.rank_correlation import average_ranks, correlation, soft_ranks, spearman
from workers.objective.statistics import batch_as_cache, row_statistics

Array = npt.NDArray[np.float64]


def _soft_ranks(x: Array) -> Array:
    width = 0.1 * x.std(ddof=1)
    ranked: Array = 0.5 + expit((x[:, None] - x[None, :]) / width).sum(axis=1)
    return ranked


def _rank_loss(teacher: Array, student: Array) -> float:
    pairs = zip(teacher, student, strict=True)
    return float(np.mean([1.0 - pearsonr(rankdata(t), _soft_ranks(s)).statistic for t, s in pairs]))


def _transcription(
    logits: Logits, confidence: str, discount: float = 0.5, low: float = 2.0, high: float = 6.0
) -> dict[str, float]:
    z_s, z_t = (matrix.numpy() for matrix in logits[:2])
    p = softmax(z_t / 4.0, axis=1)
    if confidence == "batch":
        class_mask = p.mean(axis=0) > np.median(p.mean(axis=0))
    else:
        # The batch stands for the cache; its teacher says most classes once or never.
        peaks, said = p.max(axis=1), z_t.argmax(axis=1)
        of_class = np.array([peaks[said == c].mean() if (said == c).any() else 0.0 for c in range(z_t.shape[1])])
        class_mask = of_class >= np.median(of_class)
    sample_mask = p.max(axis=1) > np.median(p.max(axis=1))
    rho = np.array([spearmanr(t, s).statistic for t, s in zip(z_t, z_s, strict=True)])
    tau = low + (high - low) * (1 - np.exp(-np.maximum(rho, 0)))
    p, q = softmax(z_t / tau[:, None], axis=1), softmax(z_s / tau[:, None], axis=1)
    weight = np.where(class_mask, 1.0, discount)
    divergence = tau**2 * (weight * (p * np.log(p / q) - p + q)).sum(axis=1)
    return {
        "lud_kl": divergence.mean(),
        "lud_class_rank": _rank_loss(z_t.T[class_mask], z_s.T[class_mask]),
        "lud_sample_rank": _rank_loss(z_t[sample_mask], z_s[sample_mask]),
    }


@pytest.mark.parametrize("confidence", ["cache", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_lud_is_its_documented_reading(seed: int, confidence: str) -> None:
    logits = ordinary(batch=9, classes=7, seed=seed)
    result, _ = evaluate({"preset": "lud", "confidence": confidence}, logits)
    for name, expected in _transcription(logits, confidence).items():
        assert result.terms[name].item() == pytest.approx(expected, rel=1e-10), name
    assert result.total.item() == pytest.approx(sum(value.item() for value in result.terms.values()))


def test_lud_has_class_weights_that_do_not_follow_the_batch() -> None:
    """Its classes are weighted by what the cache says, whichever of them are in the batch."""
    student_BC, teacher_BC, labels_B = ordinary(batch=16, classes=6)
    method = parse_method({"preset": "lud", "class_weight": 0.0, "sample_weight": 0.0}).expand()
    over_cache = batch_as_cache(method.cache_statistics, teacher_BC)

    def kl(rows: slice) -> float:
        result = objective(
            method,
            student_BC[rows],
            labels_B[rows],
            epoch=1000,
            teacher_logits_BC=teacher_BC[rows],
            teacher_statistics=row_statistics(teacher_BC[rows]),
            cache_statistics=over_cache,
        )
        return float(result.terms["lud_kl"])

    halves = [kl(slice(0, 8)), kl(slice(8, 16))]
    assert kl(slice(0, 16)) == pytest.approx(sum(halves) / 2, rel=1e-12)


STORED = {
    "preset": "lud",
    "family": "cifar",
    "ce_weight": 1.0,
    "warmup_epochs": 20,
    "temperature": 4.0,
    "temperature_min": 2.0,
    "temperature_max": 6.0,
    "discount": 0.5,
    "beta": 1.0,
    "class_weight": 1.0,
    "sample_weight": 1.0,
}
"""A method of a job that was stored before classes had a confidence of their own."""


def test_lud_that_was_stored_without_a_confidence_keeps_the_batchs() -> None:
    method = parse_method(STORED)
    assert method.label == "lud(confidence=batch)"
    assert method.expand().cache_statistics == ()
    # And so does its digest.
    assert method.model_dump(mode="json") == STORED
    assert parse_method(method.model_dump(mode="json")) == method
    loss = method.expand().terms[0].loss
    assert Lud.model_validate(loss.model_dump()) == loss
    assert "confidence" not in loss.model_dump()


def test_lud_of_a_client_takes_the_caches_confidence_and_is_stored_with_it() -> None:
    for given in ("lud", {"preset": "lud", "discount": 0.25}, {"preset": "lud", "confidence": "cache", **STORED}):
        method = parse_method(given)
        stored = method.model_dump(mode="json")
        assert stored["confidence"] == "cache"
        assert parse_method(stored) == method
        assert [str(each) for each in method.expand().cache_statistics] == [
            "class_confidence(temperature=4)",
            "confident_classes(temperature=4)",
        ]
        loss = method.expand().terms[0].loss
        assert Lud.model_validate(loss.model_dump()) == loss
    custom = {"preset": "custom", "terms": [{"loss": "lud"}]}
    assert parse_method(custom).expand().cache_statistics == method.expand().cache_statistics


def test_lud_measures_the_caches_confidence_at_its_presets_temperature() -> None:
    found = parse_method({"preset": "lud", "temperature": 3}).expand().cache_statistics
    assert {each.temperature for each in found} == {3.0}


def test_lud_temperature_rises_with_agreement_between_its_bounds() -> None:
    _, teacher_BC, labels_B = ordinary()
    agree, _ = evaluate("lud", (teacher_BC * 0.3, teacher_BC, labels_B))
    disagree, _ = evaluate("lud", (-teacher_BC, teacher_BC, labels_B))
    torch.testing.assert_close(agree.student_temperature, torch.full((8,), 6.0 - 4.0 / np.e, dtype=torch.float64))
    torch.testing.assert_close(disagree.student_temperature, torch.full((8,), 2.0, dtype=torch.float64))


def test_lud_without_discount_the_divergence_is_plain_kl_at_its_temperature() -> None:
    """At equal bounds the temperature is fixed, and with every class at weight 1 nothing of LUD is left."""
    logits = ordinary()
    loss = Lud(discount=1.0, temperature_min=3.0, temperature_max=3.0)
    ours, _ = evaluate(Method(name="probe", terms=(Term(loss=loss, name="lud"),)), logits)
    plain, _ = evaluate(parse_method({"preset": "kd", "temperature": 3}).expand(), logits)
    torch.testing.assert_close(ours.terms["lud_kl"], plain.terms["kd"])


def test_lud_of_one_sample_has_no_order_among_samples() -> None:
    result, _ = evaluate("lud", EDGES["batch_of_one"]())
    assert result.terms["lud_class_rank"] == 0.0
    assert result.terms["lud_sample_rank"] > 0.0


def test_lud_rank_losses_pull_the_student_towards_the_teachers_order() -> None:
    student_BC, teacher_BC, labels_B = ordinary(seed=3)
    loss = Lud(beta=0.0)
    method = Method(name="probe", ce_weight=0.0, terms=(Term(loss=loss),))
    before, gradient_BC = evaluate(method, (student_BC, teacher_BC, labels_B))
    after, _ = evaluate(method, (student_BC - 0.05 * gradient_BC, teacher_BC, labels_B))
    assert after.total < before.total


# -------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("seed", range(3))
def test_average_ranks_are_scipys(seed: int) -> None:
    x_RN = np.random.default_rng(seed).integers(0, 5, (6, 9)).astype(np.float64)
    np.testing.assert_array_equal(average_ranks(torch.from_numpy(x_RN)).numpy(), rankdata(x_RN, axis=1))


def test_spearman_is_scipys_and_zero_for_a_constant_row() -> None:
    rng = np.random.default_rng(0)
    a_RN, b_RN = rng.integers(0, 9, (2, 5, 12)).astype(np.float64)
    a_RN[4] = 1.0
    expected = [spearmanr(a, b).statistic for a, b in zip(a_RN[:4], b_RN[:4], strict=True)] + [0.0]
    np.testing.assert_allclose(spearman(torch.from_numpy(a_RN), torch.from_numpy(b_RN)).numpy(), expected, atol=1e-12)


def test_soft_ranks_approach_ranks_as_the_width_shrinks() -> None:
    x_RN = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(soft_ranks(x_RN, 1e-4), average_ranks(x_RN))


def test_soft_ranks_have_an_exact_gradient() -> None:
    x_RN = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    width_R1 = 0.1 * x_RN.detach().std(dim=1, keepdim=True)
    # Through autograd, comparison by comparison.
    plain_RN = torch.sigmoid((x_RN.unsqueeze(2) - x_RN.unsqueeze(1)) / width_R1.unsqueeze(2)).sum(dim=2) + 0.5
    upstream_RN = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(plain_RN, x_RN, upstream_RN)
    ours_RN = soft_ranks(x_RN, 0.1)
    torch.testing.assert_close(ours_RN, plain_RN)
    torch.testing.assert_close(torch.autograd.grad(ours_RN, x_RN, upstream_RN)[0], expected)


def test_soft_ranks_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x_RN = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    results = []
    for elements in (1 << 24, 1, 80):
        monkeypatch.setattr(rank_correlation, "PIECE_ELEMENTS", elements)
        ranked_RN = soft_ranks(x_RN, 0.1)
        results.append((ranked_RN, torch.autograd.grad(ranked_RN.square().sum(), x_RN)[0]))
    for ranked_RN, gradient_RN in results[1:]:
        torch.testing.assert_close(ranked_RN, results[0][0])
        torch.testing.assert_close(gradient_RN, results[0][1])


def test_correlation_of_a_constant_row_is_undefined_and_has_no_gradient() -> None:
    a_RN = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    b_RN = torch.tensor([[5.0, 5.0, 5.0], [1.0, 2.0, 3.5]], requires_grad=True)
    rho_R, defined_R = correlation(a_RN, b_RN)
    assert defined_R.tolist() == [False, True]
    assert rho_R[0] == 0.0
    (gradient_RN,) = torch.autograd.grad(rho_R.sum(), b_RN)
    assert torch.equal(gradient_RN[0], torch.zeros(3))
    assert torch.isfinite(gradient_RN).all()
