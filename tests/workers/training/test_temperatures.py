"""Temperatures of an epoch: the paper's own T beside the divisor, histograms and quantiles, what a policy declares."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.digits import SMALL, Digits
from tests.support.method_inputs import POLICIES, alone, evaluate, ordinary
from workers.events import ignore, never
from workers.methods.losses import Kl
from workers.methods.policies.catalog import POLICIES as POLICY_FUNCTIONS
from workers.methods.temperature_bins import BINS, CELLS, EDGES, QUANTILES, TemperatureDistribution, count
from workers.objective.results import Objective
from workers.objective.statistics import LiveBatch, LiveStatistics
from workers.training.loop import train_run
from workers.training.metrics.epoch_sums import EpochSums, Reading
from workers.training.metrics.temperatures import bin_edges, count_cells

CPU = torch.device("cpu")
NAMES = [f"q{round(100 * share):02d}" for share in QUANTILES]
BIN = 2 ** (1 / 16)


def cells_of(values_N: Tensor) -> np.ndarray:
    cells_RX = torch.zeros(1, CELLS, dtype=torch.float64)
    count_cells(cells_RX, values_N.float()[None], bin_edges(CPU), torch.ones((), dtype=torch.float64))
    return cells_RX[0].numpy().astype(np.int64)


# ----------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("name", POLICIES)
def test_policy_declares_the_papers_temperature_where_its_divisor_is_another(name: str) -> None:
    """Z-scoring divides by T (std + eps) at weight T^2; every other policy divides by what its paper calls T."""
    policy = POLICIES[name]
    z_s_BC, z_t_BC, y_B = ordinary()
    student, teacher = LiveStatistics(z_s_BC), LiveStatistics(z_t_BC)
    batch = LiveBatch(z_s_BC, y_B, 1, 10, torch.tensor(1.0, dtype=torch.float64))
    given = POLICY_FUNCTIONS[policy.kind](student, teacher, policy, batch)
    assert (given.paper is not None) == policy.z_scores
    if given.paper is not None:
        for divisor, statistics in ((given.student, student), (given.teacher, teacher)):
            torch.testing.assert_close(given.paper * (statistics["std"] + 1e-7), divisor)
        torch.testing.assert_close(torch.as_tensor(given.paper * given.paper), torch.as_tensor(given.weight))


def test_objective_shows_the_papers_temperature_of_the_term_whose_divisors_it_shows() -> None:
    found, _ = evaluate(alone(POLICIES["standardize"], Kl()), ordinary())
    assert found.paper_temperature == 2.0
    assert isinstance(found.student_temperature, Tensor)
    found, _ = evaluate(alone(POLICIES["max_logit"], Kl()), ordinary())
    assert isinstance(found.paper_temperature, Tensor)
    assert found.paper_temperature.shape == (8,)
    found, _ = evaluate(alone(POLICIES["normkd"], Kl()), ordinary())
    assert found.paper_temperature is None


# -------------------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3, 2.0])
def test_distribution_quantiles_are_those_of_the_values_to_a_bin(spread: float) -> None:
    values_N = 13.26 * torch.exp(spread * torch.randn(4000, generator=torch.Generator().manual_seed(0)))
    found = TemperatureDistribution(0.0, 0.0, cells_of(values_N)).quantiles()
    expected = np.quantile(values_N.numpy(), QUANTILES)
    assert [*found] == NAMES
    for name, value in zip(NAMES, expected, strict=True):
        assert value / BIN < found[name] < value * BIN


def test_distribution_counts_what_lies_outside_of_all_bins() -> None:
    cells_X = cells_of(torch.tensor([1e-9, 2.0**-10, 1.0, 2.0**14, 1e9, 3e9]))
    assert (cells_X[0], cells_X[-1], cells_X.sum()) == (1, 3, 6)
    document = TemperatureDistribution(1.0, 0.0, cells_X).document()
    assert (document["below"], document["above"], document["first_bin"]) == (1, 3, 0)
    # 1 is where the 161st bin begins.
    assert document["counts"] == [1, *[0] * 159, 1]
    assert (document["q05"], document["q95"]) == (2.0**-10, 2.0**14)


def test_distribution_of_a_cache_is_counted_as_on_the_device() -> None:
    """Edges belong to the bin above them."""
    values_N = np.concatenate([EDGES, np.random.default_rng(0).lognormal(1, 3, 1000)]).astype(np.float32)
    found = count(values_N)
    np.testing.assert_array_equal(found.cells_X, cells_of(torch.from_numpy(values_N)))
    assert (found.mean, found.std) == (pytest.approx(values_N.mean()), pytest.approx(values_N.std()))


def test_distribution_of_a_constant_has_no_counts() -> None:
    document = TemperatureDistribution(4.0, 0.0).document()
    assert document == {"mean": 4.0, "std": 0.0, **dict.fromkeys(NAMES, 4.0)}
    empty = TemperatureDistribution(0.0, 0.0, np.zeros(CELLS, np.int64)).document()
    assert (empty["q50"], empty["counts"]) == (None, [])


# ----------------------------------------------------------------------------------------------------------- epoch sums


def step_of(tau_B: Tensor, paper: Tensor | float | None) -> Objective:
    ones = (torch.tensor(2.0), torch.tensor(3.0))
    return Objective(ones[0], ("ce", "kd"), (1.0, 0.5), ones, tau_B, 2.0 * tau_B, (), paper_temperature=paper)


def add(sums: EpochSums, steps: list[Objective]) -> None:
    for step in steps:
        tau_B = step.student_temperature
        assert isinstance(tau_B, Tensor)
        sums.add(step, torch.eye(len(tau_B)), torch.arange(len(tau_B)), torch.zeros(()))
        sums.count(len(tau_B))


@pytest.mark.parametrize("name", ["loss", "accuracy", "a_temperature_b", "x_temperature_variance", "inside_domain"])
def test_epoch_sums_keep_their_own_names_whatever_a_client_calls_a_term(name: str) -> None:
    tau_B = torch.full((8,), 4.0)
    step = replace(step_of(tau_B, None), names=("ce", name))
    sums = EpochSums(CPU)
    add(sums, [step])
    means = sums.read().means
    assert (means["train_loss"], means["train_accuracy"], means["train_ce"]) == (2.0, 1.0, 2.0)
    assert means[f"train_{name}"] == {"loss": 2.0, "accuracy": 1.0}.get(name, 1.5)


@pytest.mark.parametrize("varies", [True, False])
def test_epoch_sums_tell_means_deviations_and_counts_of_all_rows(varies: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [5.0 + torch.rand(rows, generator=generator) for rows in (64, 64, 9)]
    steps = [step_of(tau_B, tau_B.sqrt() if varies else 2.0) for tau_B in batches]
    sums = EpochSums(CPU)
    add(sums, steps)
    found = sums.read()
    tau_N = torch.cat(batches).double().numpy()
    assert found.means["train_kd"] == pytest.approx(1.5)
    assert (found.means["train_accuracy"], found.rows, found.bad_steps) == (1.0, 137, 0)
    for network, values_N in (("student", tau_N), ("teacher", 2.0 * tau_N)):
        assert found.means[f"{network}_temperature_mean"] == pytest.approx(values_N.mean(), rel=1e-6)
        assert found.means[f"{network}_temperature_std"] == pytest.approx(values_N.std(), rel=1e-5)
        cells_X = found.temperatures[network].divisor.cells_X
        assert cells_X is not None
        assert np.array_equal(cells_X, cells_of(torch.from_numpy(values_N)))
        papers_N = np.sqrt(tau_N) if varies else np.full(1, 2.0)
        assert found.means[f"{network}_paper_temperature_mean"] == pytest.approx(papers_N.mean(), rel=1e-6)
        assert found.means[f"{network}_paper_temperature_q50"] == pytest.approx(np.median(papers_N), rel=BIN - 1)


def test_epoch_sums_go_on_from_a_checkpoint_with_the_same_counts() -> None:
    batches = [5.0 + torch.rand(64, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    steps = [step_of(tau_B, None) for tau_B in batches]
    whole, first, second = EpochSums(CPU), EpochSums(CPU), EpochSums(CPU)
    add(whole, steps)
    add(first, steps[:4])
    second.load(first.state())
    add(second, steps[4:])

    def documents(reading: Reading) -> list[dict[str, object]]:
        return [found.divisor.document() for found in reading.temperatures.values()]

    assert documents(second.read()) == documents(whole.read())
    assert second.read().means == whole.read().means
    second.reset()
    add(second, steps[:1])
    cells_X = second.read().temperatures["student"].divisor.cells_X
    assert cells_X is not None
    assert cells_X.sum() == 64


def test_epoch_sums_count_steps_without_an_update_whatever_the_last_batch() -> None:
    sums, bad = EpochSums(CPU), torch.ones(())
    for rows, not_finite in ((64, 0 * bad), (64, bad), (64, bad), (9, bad)):
        step = replace(step_of(torch.ones(rows), None), total=torch.tensor(torch.nan) * bad)
        sums.add(step, torch.eye(rows), torch.arange(rows), not_finite)
        sums.count(rows)
    assert sums.read().bad_steps == 3


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize(("method", "paper"), [("lskd", (2.0, 2.0)), ("atkd", (2.0, 4.2)), ("kd", (4.0, 4.0))])
def test_run_tells_the_papers_temperature_beside_the_divisor(
    method: str, paper: tuple[float, float], digits: Digits, tmp_path: Path
) -> None:
    result = train_run(digits.order(method, tmp_path, SMALL), ignore, never)
    last = result["last"]
    assert isinstance(last, dict)
    for network in ("student", "teacher"):
        assert paper[0] <= last[f"{network}_paper_temperature_q05"] <= last[f"{network}_paper_temperature_q95"]
        assert last[f"{network}_paper_temperature_q95"] <= paper[1]
        # The divisor has the logits' standard deviation in it.
        apart = abs(last[f"{network}_temperature_mean"] / last[f"{network}_paper_temperature_mean"] - 1)
        assert (apart > 0.2) == (method != "kd"), (network, last)
    written = json.loads((tmp_path / "artifacts/temperatures.json").read_text())
    assert written["bins"] == {"least_exponent": -10, "bins_per_octave": 16, "count": BINS}
    assert [epoch["epoch"] for epoch in written["epochs"]] == [1, 2]
    of_teacher = written["epochs"][-1]["teacher"]
    assert of_teacher["paper"]["q50"] == last["teacher_paper_temperature_q50"]
    if method != "kd":
        counted = of_teacher["divisor"]["counts"]
        assert sum(counted) + of_teacher["divisor"]["below"] == digits.train.samples
        assert counted[0] > 0
        assert counted[-1] > 0


@pytest.mark.usefixtures("without_onnx")
def test_run_of_cross_entropy_tells_no_temperatures(digits: Digits, tmp_path: Path) -> None:
    result = train_run(digits.order("ce", tmp_path, SMALL.model_copy(update={"epochs": 1})), ignore, never)
    assert not (tmp_path / "artifacts/temperatures.json").exists()
    assert [name for name, value in result["last"].items() if "temperature" in name and value is not None] == []
