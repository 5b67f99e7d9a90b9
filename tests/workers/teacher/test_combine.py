"""Several teachers: how rows are combined, which caches a job has, and what it asks of the teachers."""

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import ValidationError

from store import CacheReader, Catalog
from tests.benchmarks import several_teachers
from tests.support.digits import SMALL, Digits
from workers.config.cache import CacheOptions
from workers.config.combination import Combination, WeightedTeacher
from workers.config.draft import JobDraft
from workers.config.job import JobSpec
from workers.errors import ContractViolation, InvalidJob, InvalidTeacher
from workers.events import CacheReady, ignore, never
from workers.methods.catalog import parse_method
from workers.pipeline import run_job
from workers.teacher.build_caches import build_caches, reserve_caches
from workers.teacher.cache_plan import CachePlan
from workers.teacher.combine import combine_rows
from workers.teacher.forwards import forwards_needed
from workers.teacher.plan_caches import plan_caches
from workers.teacher.recheck import recheck_rows
from workers.tools.parity import check_parity

A_BC = np.array([[4.0, 1.0, 0.0], [0.0, 0.5, 1.0]], np.float32)
B_BC = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]], np.float32)


def softmax(z_BC: NDArray[np.float32]) -> NDArray[np.float64]:
    e_BC: NDArray[np.float64] = np.exp(z_BC.astype(np.float64))
    return np.asarray(e_BC / e_BC.sum(axis=1, keepdims=True))


def test_combine_rows_takes_the_weighted_mean_of_logits_or_of_probabilities() -> None:
    mean_BC = combine_rows([A_BC, B_BC], [3.0, 1.0], Combination())
    np.testing.assert_allclose(mean_BC, 0.75 * A_BC + 0.25 * B_BC, rtol=1e-6)
    log_p_BC = combine_rows([A_BC, B_BC], [3.0, 1.0], Combination(space="probabilities"))
    np.testing.assert_allclose(np.exp(log_p_BC), 0.75 * softmax(A_BC) + 0.25 * softmax(B_BC), rtol=1e-6)


def test_combine_rows_weighs_each_sample_by_confidence_or_an_expression() -> None:
    confident = combine_rows([A_BC, B_BC], [1.0, 2.0], Combination(weights="confidence"))
    a_B1, b_B1 = (softmax(z).max(axis=1, keepdims=True) for z in (A_BC, B_BC))
    np.testing.assert_allclose(confident, (a_B1 * A_BC + 2 * b_B1 * B_BC) / (a_B1 + 2 * b_B1), rtol=1e-6)
    combination = Combination.model_validate({"weights": {"expression": "max - min"}})
    spread = combine_rows([A_BC, B_BC], [1.0, 1.0], combination)
    a_B1, b_B1 = (np.ptp(z, axis=1, keepdims=True) for z in (A_BC, B_BC))
    np.testing.assert_allclose(spread, (a_B1 * A_BC + b_B1 * B_BC) / (a_B1 + b_B1), rtol=1e-6)
    # A share of 0 is no NaN in probability space.
    ruled_out = Combination.model_validate(
        {"space": "probabilities", "weights": {"expression": "where(max > 3.5, 1, 0)"}}
    )
    log_p_BC = combine_rows([A_BC[:1], B_BC[:1]], [1.0, 1.0], ruled_out)
    np.testing.assert_allclose(np.exp(log_p_BC), softmax(A_BC[:1]), rtol=1e-6)


def test_weights_that_an_expression_must_not_give_are_refused() -> None:
    for expression, said in (
        ("mean - 1", "-0.5 for sample 8"),
        ("log(min)", "inf for sample 7"),
        ("0 * max", "weight 0"),
    ):
        combination = Combination.model_validate({"weights": {"expression": expression}})
        with pytest.raises(InvalidJob, match=said):
            combine_rows([A_BC, B_BC], [1.0, 1.0], combination, 7)
    with pytest.raises(ValidationError, match="student_max"):
        Combination.model_validate({"weights": {"expression": "student_max"}})


# ------------------------------------------------------------------------------------------------------- with teachers


@dataclass(frozen=True)
class Both:
    """The digits' teacher, and another one: the same network with other logits."""

    digits: Digits
    other: WeightedTeacher

    def job(self, *methods: str, combine: Combination | None = None, cache: CacheOptions | None = None) -> JobSpec:
        """A job of both, the first of which weighs three times as much."""
        job = self.digits.job(*methods, training=SMALL.model_copy(update={"epochs": 1, "device": "cpu"}))
        first = WeightedTeacher(**dict(self.digits.teacher_spec), weight=3.0, name="one")
        plan = {name: getattr(job, name) for name in type(job).model_fields if not name.startswith("teacher")}
        plan |= {"combine": combine, "cache": cache or CacheOptions()}
        return JobSpec(**plan, teachers=(first, self.other))

    def plan(self, job: JobSpec) -> CachePlan:
        return plan_caches(job, self.digits.folders, ignore, never, threads=1, device="cpu")

    def build(self, job: JobSpec) -> tuple[CachePlan, int]:
        """The plan of complete caches, and how often a teacher was run for them, preflights included."""
        plan = self.plan(job)
        with reserve_caches(plan, self.digits.folders, 0, ignore):
            return plan, build_caches(plan, self.digits.folders, ignore, never, threads=1, device="cpu")


@pytest.fixture(scope="module")
def both(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Both:
    model = onnx.load(digits.teacher_spec.path)
    last = [each for each in model.graph.initializer if len(each.dims) == 2][-1]
    noise = np.random.default_rng(0).normal(1.0, 0.2, tuple(last.dims)).astype(np.float32)
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * noise, last.name))
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    onnx.save(model, path)
    return Both(digits, WeightedTeacher(path=path, preprocessing=digits.preprocessing, name="two"))


def test_a_job_of_several_teachers_has_a_cache_of_their_combined_rows(both: Both) -> None:
    digits = both.digits
    assert digits.plan.test_cache is not None
    plan, forwards = both.build(both.job("kd"))
    first, second = plan.members
    # The first teacher's caches are those of a job of its own; the second one is run on as many rows, and tried before.
    assert list(first.caches.values()) == [digits.plan.train_cache, digits.plan.test_cache]
    views = digits.plan.train_cache.views * digits.plan.train_cache.samples
    assert forwards == views + digits.plan.test_cache.samples + plan.contract_forwards
    rows = np.arange(digits.plan.train_cache.samples)
    readers = [CacheReader(digits.folders.caches, each.caches["train"]) for each in (first, second)]
    with CacheReader(digits.folders.caches, plan.train_cache) as combined:
        for view in range(2):
            a_NC, b_NC = (reader.gather(view, rows).astype(np.float64) for reader in readers)
            assert np.abs(a_NC - b_NC).max() > 0.1
            expected_NC = (0.75 * a_NC + 0.25 * b_NC).astype(np.float32).astype(np.float16)
            np.testing.assert_allclose(combined.gather(view, rows), expected_NC, atol=1e-3)
    # Two jobs of the same ratio share it; of another combination they share the teachers' own.
    assert both.plan(both.job("kd")).train_cache.key == plan.train_cache.key
    others = [both.build(both.job("kd", combine=Combination(weights="confidence")))]
    others.append(both.build(both.job("kd", cache=CacheOptions(encoding="uint8"))))
    assert [run for _, run in others] == [0, 0]
    assert len({each.train_cache.key for each, _ in others} | {plan.train_cache.key}) == 3
    # What a cache is combined of may be gone.
    catalog = Catalog(digits.folders.caches)
    for spec in second.caches.values():
        catalog.delete(spec.key)
    assert both.build(both.job("kd"))[1] == 0
    with pytest.raises(InvalidTeacher, match=f"combined of the caches {first.caches['train'].key[:12]}"):
        recheck_rows(digits.folders.data_dir, plan.train_cache.key, 1)
    with pytest.raises(InvalidTeacher, match="combined of the caches"):
        check_parity(digits.folders.data_dir, plan.train_cache.key, parse_method("kd"))


@pytest.mark.usefixtures("without_onnx")
def test_a_run_of_several_teachers_names_them_in_its_bundle_and_card(both: Both, tmp_path: Path) -> None:
    events: list[object] = []
    outcome = run_job(both.job("kd"), both.digits.folders, tmp_path, events.append)
    artifacts = tmp_path / "run-0" / "artifacts"
    bundle = json.loads((artifacts / "bundle.json").read_text())
    assert [(each["name"], each["weight"]) for each in bundle["teachers"]] == [("one", 3.0), ("two", 1.0)]
    assert {"sha256": bundle["teachers"][0]["sha256"], "name": "one"}.items() <= bundle["teacher"].items()
    assert str(both.other.path) not in json.dumps(bundle)
    with zipfile.ZipFile(artifacts / "model.zip") as archive:
        [card] = [name for name in archive.namelist() if name.endswith("README.md")]
        assert "3 x one + 1 x two" in archive.read(card).decode()
    ready = [event for event in events if isinstance(event, CacheReady)]
    assert ready[-1].cache == bundle["caches"]["train"]
    # A live combination would run both teachers.
    alone = both.digits.job("kd", training=both.job("kd").training)
    assert forwards_needed(both.job("kd"), both.digits.plan) == 2 * forwards_needed(alone, both.digits.plan)
    assert outcome.teacher_accuracy["test"] > 0.9


def test_methods_that_need_logits_refuse_combined_probabilities(both: Both) -> None:
    job = both.job("dtkd", combine=Combination(space="probabilities"))
    with pytest.raises(ContractViolation, match="Combine in the space logits"):
        both.plan(job)
    plan, _ = both.build(both.job("kd", combine=Combination(space="probabilities")))
    assert plan.train_cache.output_kind == "log_probabilities"
    with CacheReader(both.digits.folders.caches, plan.test_cache or plan.train_cache) as reader:
        z_NC = reader.gather(0, np.arange(10)).astype(np.float64)
    assert all(math.isclose(total, 1.0, abs_tol=0.01) for total in np.exp(z_NC).sum(axis=1))


def test_a_draft_lists_its_teachers_and_one_or_a_combination_of_one_is_refused(both: Both) -> None:
    files = [{"path": str(both.digits.teacher_spec.path), "weight": 2}, {"path": str(both.other.path)}]
    written = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["kd"]}
    job = JobDraft.model_validate({**written, "teachers": files}).job()
    assert [each.weight for each in job.all_teachers] == [2.0, 1.0]
    assert job.teacher.path == both.digits.teacher_spec.path
    with pytest.raises(ValidationError, match="needs two or more"):
        JobDraft.model_validate({**written, "teachers": files[:1]}).job()
    with pytest.raises(ValidationError, match="list them in `teachers`"):
        both.digits.job("kd").model_validate({**dict(both.digits.job("kd")), "combine": {}})
    # What is stored of a job of one teacher does not know of several.
    assert not {"teachers", "combine"} & both.digits.job("kd").model_dump(mode="json").keys()


@pytest.mark.slow
def test_the_mean_of_resnet56_and_resnet20_is_at_least_as_good_as_the_better_one(
    shared_data: Path, tmp_path: Path
) -> None:
    """The published networks on 2,000 pictures of CIFAR-10's test split, by jobs that train nothing."""
    assert shared_data.is_dir()
    alone, combined = [], {}
    for figure in several_teachers.figures_of(tmp_path, 2000):
        if figure.name in several_teachers.NETWORKS:
            alone.append(figure)
        else:
            combined[figure.name] = figure
    for name in ("both, logits, fixed", "both, probabilities, fixed"):
        assert combined[name].top1 >= max(each.top1 for each in alone)
        assert combined[name].nll < min(each.nll for each in alone)
        assert combined[name].forwards == 0
