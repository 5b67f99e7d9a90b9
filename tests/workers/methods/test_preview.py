"""The preview of a method's temperatures: the numbers that training would use, from cached statistics alone.

Shapes: V views, N samples, C classes.
"""

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.cli import main
from service.client.client import Client
from service.client.errors import ApiProblem
from store import CacheReader, CacheSpec, CacheWriter
from store.statistics import row_statistics
from tests.support.method_inputs import POLICIES, alone
from tests.support.service_helpers import Api
from tests.support.store_cases import make_spec, write_blocks
from workers.errors import InvalidMethod, NotFinite
from workers.methods.catalog import parse_method
from workers.methods.losses import Kl, Lud, Mse
from workers.methods.method import Method, Term
from workers.methods.policies.annealed import Annealed
from workers.methods.policies.asymmetric import Asymmetric
from workers.methods.policies.base import Policy
from workers.methods.policies.catalog import POLICIES as FUNCTIONS
from workers.methods.policies.catalog import POLICY_CLASSES
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.expression import Expression
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.learned import Learned
from workers.methods.policies.max_logit import MaxLogit
from workers.methods.policies.normkd import Normkd
from workers.methods.policies.standardize import Standardize
from workers.methods.preview import preview
from workers.methods.preview_report import Distribution, PreviewRow, PreviewTerm
from workers.objective.objective import objective
from workers.objective.statistics import LiveBatch

pytest_plugins = ["tests.support.service_fixtures"]

Float32 = npt.NDArray[np.float32]
Statistics = dict[str, Float32]
Retort = Callable[..., tuple[int, str, str]]
CLASSES = 6


def random_logits(seed: int, views: int, samples: int) -> Float32:
    """[V, N, C], some of whose rows have a negative maximum."""
    generator = np.random.default_rng(seed)
    return generator.normal(generator.normal(0, 2, (views, samples, 1)), 3, (views, samples, CLASSES)).astype(
        np.float32
    )


def statistics_of(logits_VNC: Float32) -> Statistics:
    """As a cache holds them, [V, N] by name."""
    views = [row_statistics(logits_NC) for logits_NC in logits_VNC]
    return {name: np.stack([view[name] for view in views]) for name in views[0]}


TEACHER = statistics_of(random_logits(0, 2, 40))
STUDENT = statistics_of(random_logits(1, 2, 40))


def previewed(
    policy: Policy,
    teacher: Statistics = TEACHER,
    student: Statistics | None = None,
    *,
    classes: int = CLASSES,
    epoch: int = 1,
    epochs: int = 240,
    bins: int = 32,
) -> PreviewTerm:
    """The one term of a method with this policy."""
    method = alone(policy, Kl())
    (term,) = preview(method, teacher, classes, student=student, epoch=epoch, epochs=epochs, bins=bins)
    return term


def check(found: Distribution, expected_VN: npt.NDArray[Any]) -> None:
    """Everything about a distribution against float64 arithmetic on what it should be of."""
    expected = np.asarray(expected_VN, np.float64).reshape(-1)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert found.std == pytest.approx(expected.std(), rel=1e-5)
    assert list(found.quantiles) == ["p0", "p1", "p5", "p25", "p50", "p75", "p95", "p99", "p100"]
    for name, value in found.quantiles.items():
        assert value == pytest.approx(np.percentile(expected, float(name[1:])), rel=1e-5)
    order = np.argsort(expected, kind="stable")
    samples = np.shape(expected_VN)[1]
    for rows, wanted in ((found.lowest, order[:5]), (found.highest, order[::-1][:5])):
        assert [(row.view, row.sample) for row in rows] == [divmod(int(place), samples) for place in wanted]
        assert [row.value for row in rows] == pytest.approx(expected[wanted], rel=1e-5)


def places(rows: tuple[PreviewRow, ...]) -> list[tuple[int, int]]:
    return [(row.view, row.sample) for row in rows]


# ------------------------------------------------------------------------------------------------------------ by hand


def test_normkd_is_k_times_each_networks_own_std() -> None:
    term = previewed(Normkd(scale=3.0), student=STUDENT)
    check(term.teacher, 3.0 * TEACHER["std"].astype(float))
    check(term.student, 3.0 * STUDENT["std"].astype(float))
    check(term.weight, (3.0 * TEACHER["std"].astype(float)) ** 2)


def test_preview_standardised_logits_are_divided_by_their_std_too() -> None:
    term = previewed(Standardize(temperature=1.5, eps=0.25), student=STUDENT)
    check(term.teacher, 1.5 * (TEACHER["std"].astype(float) + 0.25))
    check(term.student, 1.5 * (STUDENT["std"].astype(float) + 0.25))
    assert term.weight.quantiles == dict.fromkeys(term.weight.quantiles, 2.25)


@pytest.mark.parametrize("form", ["released", "teacher_only"])
def test_max_logit_scales_by_the_largest_z_score(form: Literal["released", "teacher_only"]) -> None:
    term = previewed(MaxLogit(form=form), student=STUDENT)

    def reach(of: Statistics) -> npt.NDArray[np.float64]:
        high, low = (of[name].astype(np.float64) - of["mean"] for name in ("max", "min"))
        reach_VN: npt.NDArray[np.float64] = np.maximum(high, -low) / (of["std"] + 1e-7)
        return reach_VN

    if form == "released":
        largest = np.maximum(reach(TEACHER), reach(STUDENT))
    else:
        largest = (TEACHER["max"].astype(float) - TEACHER["mean"]) / (TEACHER["std"] + 1e-7)
    tau = (1 + np.sqrt(3)) / 2 * largest
    check(term.teacher, tau * (TEACHER["std"] + 1e-7))
    check(term.student, tau * (STUDENT["std"] + 1e-7))
    check(term.weight, tau**2)


def test_dtkd_shares_its_temperature_in_proportion_to_the_maxima() -> None:
    term = previewed(Dtkd(temperature=2.0), student=STUDENT)
    x, y = TEACHER["max"].astype(float), STUDENT["max"].astype(float)
    ratio = np.abs(x) / np.abs(y)
    inside = (x * y > 0) & (ratio <= 100) & (ratio >= 0.01)
    assert 0 < inside.sum() < inside.size, "the inputs show both cases"
    teacher = np.where(inside, 4.0 * x / (x + y), 2.0)
    student = np.where(inside, 4.0 * y / (x + y), 2.0)
    assert term.teacher.mean == pytest.approx(teacher.mean(), rel=1e-6)
    assert term.student.mean == pytest.approx(student.mean(), rel=1e-6)
    assert term.weight.mean == pytest.approx((student * teacher).mean(), rel=1e-6)
    assert places(term.teacher.lowest[:1]) == [divmod(int(teacher.argmin()), 40)]
    assert places(term.teacher.highest[:1]) == [divmod(int(teacher.argmax()), 40)]


def test_expression_is_what_it_says() -> None:
    policy = Expression(
        teacher="clip(sharpness - student_mean + 10, 1, 99)", student="std + epoch / epochs", weight="3"
    )
    term = previewed(policy, student=STUDENT, epoch=30)
    check(term.teacher, np.clip(TEACHER["sharpness"].astype(float) - STUDENT["mean"] + 10, 1, 99))
    check(term.student, TEACHER["std"].astype(float) + 30 / 240)
    assert (term.weight.mean, term.weight.std) == (3.0, 0.0)
    assert previewed(Expression(temperature="2 + classes / 4")).teacher.mean == 3.5


@pytest.mark.parametrize(("epoch", "tau"), [(1, 4.0), (2, 4.0), (3, 2.0), (7, 1.0), (200, 1.0)])
def test_preview_annealed_teacher_depends_on_the_epoch(epoch: int, tau: float) -> None:
    term = previewed(Annealed(steps=4, epochs_per_step=2), epoch=epoch)
    assert (term.teacher.mean, term.student.mean, term.weight.mean) == (tau, 1.0, 1.0)


def test_preview_temperature_of_the_labels_class_enters_the_mean_over_classes() -> None:
    term = previewed(Asymmetric(student=2.0, teacher=3.0, label_temperature=9.0))
    assert term.teacher.mean == pytest.approx(4.0)
    assert (term.student.mean, term.weight.mean) == (2.0, 4.0)
    assert term.notes == ("the label's class has its own teacher temperature: shown is the mean over classes",)


def test_preview_learned_temperature_is_the_one_that_training_begins_with() -> None:
    policy = Learned(start=2.0, span=10.0, theta=0.5)
    tau = 2.0 + 10.0 / (1.0 + np.exp(-0.5))
    term = previewed(policy, epoch=100)
    assert term.teacher.mean == term.student.mean == pytest.approx(tau, rel=1e-6)
    assert term.weight.mean == pytest.approx(tau**2, rel=1e-6)
    assert "learned" in term.notes[0]
    check(previewed(policy.model_copy(update={"standardize": True})).teacher, tau * TEACHER["std"])


# ----------------------------------------------------------------------------------------------------- as in training


def test_preview_every_policy_is_among_those_compared() -> None:
    assert {policy.kind for policy in POLICIES.values()} == set(POLICY_CLASSES)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_preview_numbers_are_those_of_training(name: str, seed: int) -> None:
    policy = POLICIES[name]
    # As many rows as a preview shows, so that every value can be compared.
    teacher, student = (statistics_of(random_logits(10 * seed + who, 1, 5)) for who in (0, 1))
    term = previewed(policy, teacher, student, epoch=7, epochs=20)
    on_torch = [{k: torch.from_numpy(v.reshape(-1, 1)) for k, v in of.items()} for of in (student, teacher)]
    parameter = torch.tensor(policy.theta) if isinstance(policy, Learned) else None
    batch = LiveBatch(torch.zeros(5, CLASSES), torch.tensor([0, 3, 5, 1, 3]), 7, 20, parameter)
    wanted = FUNCTIONS[policy.kind](*on_torch, policy, batch).as_arrays(batch)
    for side in ("teacher", "student", "weight"):
        shown = {row.sample: row.value for row in getattr(term, side).lowest}
        values_B = getattr(wanted, side).mean(dim=1)
        assert values_B.dtype == torch.float32
        assert [shown[sample] for sample in range(5)] == pytest.approx(values_B.tolist(), rel=1e-6), side


def test_preview_what_stands_for_the_student_is_said() -> None:
    by_itself = previewed(Normkd())
    assert (by_itself.student_is, len(by_itself.notes)) == ("teacher", 1)
    assert "equal the teacher's" in by_itself.notes[0]
    check(by_itself.student, 2.0 * TEACHER["std"].astype(float))
    by_another = previewed(Normkd(), student=STUDENT)
    assert (by_another.student_is, by_another.notes) == ("student_cache", ())
    assert previewed(Fixed()).student_is == previewed(Fixed(), student=STUDENT).student_is == "unread"


def test_preview_terms_come_in_the_methods_order_with_the_names_of_its_metrics() -> None:
    method = Method(name="m", terms=(Term(policy=Normkd(), name="a"), Term(loss=Mse(), weight=0.5)))
    terms = preview(method, TEACHER, CLASSES, epoch=1, epochs=1)
    assert [(term.parts, term.policy, term.loss) for term in terms] == [
        (("a",), "normkd", "kl"),
        (("mse",), "fixed", "mse"),
    ]
    assert preview(parse_method("ce").expand(), TEACHER, CLASSES, epoch=1, epochs=1) == ()


# ------------------------------------------------------------------------------------------------------ distributions


def as_std(*values: float) -> Statistics:
    """One view of rows with these standard deviations."""
    return dict.fromkeys(TEACHER, np.array([values], np.float32))


def test_preview_equal_temperatures_are_ranked_by_view_and_sample() -> None:
    std = np.array([[3, 1, 2, 1], [1, 3, 1, 1]], np.float32)
    found = previewed(Normkd(scale=1.0), dict.fromkeys(TEACHER, std)).teacher
    assert places(found.lowest) == [(0, 1), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert places(found.highest) == [(0, 0), (1, 1), (0, 2), (0, 1), (0, 3)]


def test_preview_extreme_row_shows_the_statistics_that_gave_it() -> None:
    term = previewed(Normkd(), student=STUDENT)
    row = term.student.highest[0]
    assert row.teacher == {name: float(values[row.view, row.sample]) for name, values in TEACHER.items()}
    assert row.student == {name: float(values[row.view, row.sample]) for name, values in STUDENT.items()}
    assert previewed(Expression(temperature="std"), student=STUDENT).teacher.lowest[0].student is None


def test_preview_histogram_counts_every_row_between_the_extremes() -> None:
    found = previewed(Normkd(scale=1.0), as_std(1, 1.5, 2, 2.9, 5), bins=4).teacher.histogram
    assert found.edges == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert found.counts == (2, 2, 0, 1)


def test_preview_constant_distribution_is_one_bin_without_spread() -> None:
    found = previewed(Fixed(temperature=0.1)).teacher
    value = float(np.float32(0.1))
    assert (found.mean, found.std, set(found.quantiles.values())) == (value, 0.0, {value})
    assert (found.histogram.counts, found.histogram.edges) == ((80,), (value, value))
    assert places(found.lowest) == places(found.highest) == [(0, n) for n in range(5)]


def test_preview_neighbouring_float32_numbers_can_be_binned() -> None:
    above = float(np.nextafter(np.float32(3.0), np.float32(4.0)))
    found = previewed(Normkd(scale=1.0), as_std(3.0, above), bins=200).teacher
    assert (found.histogram.counts[0], found.histogram.counts[-1], sum(found.histogram.counts)) == (1, 1, 2)
    assert len(found.histogram.edges) == len(set(found.histogram.edges)) == 201


def test_preview_single_row_is_a_distribution() -> None:
    found = previewed(Normkd(scale=2.0), as_std(1.5)).teacher
    assert (found.mean, found.std, found.histogram.counts, len(found.lowest)) == (3.0, 0.0, (1,), 1)


def test_preview_rows_far_apart_are_all_looked_at() -> None:
    std = np.full((1, 200_000), 2.0, np.float32)
    std[0, [150_000, 70_000, 199_999]] = 1.0, 3.0, 0.5
    found = previewed(Normkd(scale=1.0), dict.fromkeys(TEACHER, std)).teacher
    assert places(found.lowest)[:3] == [(0, 199_999), (0, 150_000), (0, 0)]
    assert places(found.highest)[:2] == [(0, 70_000), (0, 0)]
    assert found.mean == pytest.approx(std.mean(dtype=np.float64), rel=1e-12)


def test_preview_temperatures_per_class_never_fill_the_memory() -> None:
    rows = dict.fromkeys(TEACHER, np.ones((1, 20_000), np.float32))
    tracemalloc.start()
    found = previewed(Asymmetric(teacher=3.0, label_temperature=13.0), rows, classes=1000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # [20,000, 1,000] would be 80 MB in float32.
    assert peak_bytes < 20e6
    assert found.teacher.mean == pytest.approx(3.01, rel=1e-6)
    assert found.teacher.histogram.counts == (20_000,)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("text", ["max", "log(max)", "1 / (max - max)", "exp(1000 + max)", "exp(100)", "sqrt(0 - std)"])
def test_preview_temperature_that_would_stop_a_run_is_refused_in_its_words(text: str) -> None:
    policy = Expression(teacher=text, student="1")
    logits = random_logits(0, 1, 40)
    statistics = statistics_of(logits)
    on_torch = {name: torch.from_numpy(values[0]) for name, values in statistics.items()}
    z = torch.from_numpy(logits[0])
    with pytest.raises(NotFinite) as of_run:
        objective(
            alone(policy, Kl()),
            z,
            torch.zeros(40, dtype=torch.int64),
            epoch=1,
            epochs=240,
            teacher_logits_BC=z,
            teacher_statistics=on_torch,
        )
    with pytest.raises(NotFinite) as refused:
        previewed(policy, statistics)
    assert refused.value.sample == of_run.value.sample
    of_batch = str(of_run.value).partition(": ")[2]
    assert str(refused.value).partition(": ")[2] == of_batch.replace(" of the batch", "")


def test_preview_refusal_names_the_view_and_the_sample() -> None:
    std = np.full((2, 70_000), 2.0, np.float32)
    std[1, 69_999] = 0.0
    with pytest.raises(
        NotFinite, match=r"view 1 of the cache: the student temperature of sample 69999 is 0, from 'std'"
    ):
        previewed(Expression(temperature="std"), dict.fromkeys(TEACHER, std))


def test_preview_weight_beyond_float32_is_refused_by_sample() -> None:
    with pytest.raises(NotFinite, match="policy 'normkd' gives sample 2 the weight inf"):
        previewed(Normkd(), as_std(1, 2, 1e30))


def test_preview_loss_that_sets_its_own_temperature_is_refused() -> None:
    method = Method(name="m", terms=(Term(policy=Normkd(), name="a"), Term(loss=Lud(), name="b")))
    with pytest.raises(InvalidMethod, match=r"'m' cannot be previewed: its loss 'lud' sets the temperature"):
        preview(method, TEACHER, CLASSES, epoch=1, epochs=1)


def test_preview_statistics_of_other_rows_are_refused() -> None:
    fewer = {name: values[:, :10] for name, values in STUDENT.items()}
    with pytest.raises(ValueError, match=r"\(2, 40\) and \(2, 10\)"):
        previewed(Normkd(), student=fewer)


# ---------------------------------------------------------------------------------------------------------- over HTTP

SPEC: dict[str, Any] = {
    "samples": 300,
    "views": 2,
    "augmentation": {"recipe": "crop_flip", "pad": 4, "flip": True},
    "dtype": "float32",
}


def cache(api: Api, scale: float = 1.0, **changes: object) -> CacheSpec:
    """A complete cache of logits of this scale."""
    spec = make_spec(**{**SPEC, "teacher_sha256": f"{int(scale):064x}", **changes})
    writer = CacheWriter(api.settings.caches_dir, spec)
    for block in writer.pending_blocks():
        view, start, stop = spec.block_range(block)
        generator = np.random.default_rng([view, int(scale)])
        logits = generator.normal(0, scale, (spec.samples, spec.classes)).astype(np.float32)
        writer.write_block(block, logits[start:stop])
    writer.finish()
    return spec


def cached_statistics(api: Api, spec: CacheSpec) -> Statistics:
    with CacheReader(api.settings.caches_dir, spec) as reader:
        views = [reader.statistics(view) for view in range(spec.views)]
    return {name: np.stack([view[name] for view in views]) for name in views[0]}


def ask(api: Api, method: object, key: str, **options: object) -> httpx2.Response:
    return api.client.post("/v1/methods/preview", json={"method": method, "cache": key, **options})


def answer(api: Api, method: object, key: str, **options: object) -> dict[str, Any]:
    response = ask(api, method, key, **options)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def problem(response: httpx2.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:retort:problem:{slug}", body
    return body


def expression(text: str) -> dict[str, Any]:
    return {"preset": "custom", "terms": [{"policy": {"kind": "expression", "temperature": text}}]}


def as_json(terms: tuple[PreviewTerm, ...]) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = json.loads(json.dumps([term.model_dump(mode="json") for term in terms]))
    return documents


def test_preview_answer_is_the_preview_of_the_caches_statistics(shared_api: Api) -> None:
    spec, weaker = cache(shared_api, 3.0), cache(shared_api, 2.0)
    teacher, student = cached_statistics(shared_api, spec), cached_statistics(shared_api, weaker)
    method = {"preset": "dtkd", "temperature": 3}
    expanded = parse_method(method).expand()
    found = answer(shared_api, method, spec.key)
    assert found.pop("terms") == as_json(preview(expanded, teacher, 10, epoch=1, epochs=240, bins=32))
    assert found == {
        "object": "method_preview",
        "method": "dtkd(temperature=3)",
        "cache": spec.key,
        "student_cache": None,
        "views": 2,
        "samples": 300,
        "classes": 10,
        "epoch": 1,
        "epochs": 240,
    }
    options = {"student_cache": weaker.key, "epoch": 3, "epochs": 9, "bins": 5}
    found = answer(shared_api, method, spec.key, **options)
    assert found["terms"] == as_json(preview(expanded, teacher, 10, student=student, epoch=3, epochs=9, bins=5))
    assert {name: found[name] for name in ("student_cache", "epoch", "epochs")} == {
        "student_cache": weaker.key,
        "epoch": 3,
        "epochs": 9,
    }


def test_preview_epochs_reach_the_expression(shared_api: Api) -> None:
    found = answer(shared_api, expression("1 + epoch / epochs"), cache(shared_api, 4.0).key, epoch=3, epochs=12)
    assert found["terms"][0]["teacher"]["mean"] == 1.25


def test_preview_cross_entropy_has_no_temperature(shared_api: Api) -> None:
    assert answer(shared_api, "ce", cache(shared_api, 5.0).key)["terms"] == []


def test_preview_logits_are_never_looked_at(api: Api) -> None:
    spec = cache(api)
    before = answer(api, "atkd", spec.key)
    chunks = [path for path in (api.settings.caches_dir / spec.key / "logits" / "c").rglob("*") if path.is_file()]
    assert len(chunks) == 2
    for chunk in chunks:
        content = bytearray(chunk.read_bytes())
        for place in range(len(content) - 4):  # the checksum at the end is compared when a cache is opened
            content[place] ^= 0xFF
        chunk.write_bytes(content)
    assert not api.client.post(f"/v1/caches/{spec.key}/verify").json()["ok"]
    assert answer(api, "atkd", spec.key) == before


def test_preview_cache_that_cannot_be_read_is_named(api: Api) -> None:
    problem(ask(api, "kd", "ab" * 32), 404, "not-found")
    problem(ask(api, "kd", cache(api).key, student_cache="ab" * 32), 404, "not-found")
    body = problem(ask(api, "kd", "abcd"), 422, "invalid-request")
    assert [error["pointer"] for error in body["errors"]] == ["#/cache"]
    partial = make_spec(samples=5000)
    write_blocks(CacheWriter(api.settings.caches_dir, partial), [0])
    assert "1 of 2 blocks" in problem(ask(api, "kd", partial.key), 409, "conflict")["detail"]
    damaged = cache(api, 2.0)
    chunk = api.settings.caches_dir / damaged.key / "std" / "c" / "1" / "0"
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    assert "std/c/1/0" in problem(ask(api, "kd", damaged.key), 409, "conflict")["detail"]
    foreign = "ef" * 32
    shutil.copytree(api.settings.caches_dir / partial.key, api.settings.caches_dir / foreign)
    said = problem(ask(api, "kd", foreign), 409, "conflict")["detail"]
    assert all(part in said for part in (foreign, partial.key, "must be the folder's name"))


def test_preview_student_may_have_seen_the_same_boxes_at_another_size(shared_api: Api) -> None:
    box = {"recipe": "resized_crop", "scale": [0.5, 1.0], "ratio": [0.75, 1.25], "flip": True}
    specs = [
        cache(shared_api, 10.0 + k, augmentation={**box, "size": size}) for k, size in enumerate(([224, 224], None))
    ]
    found = answer(shared_api, "normkd", specs[0].key, student_cache=specs[1].key)
    assert found["terms"][0]["student_is"] == "student_cache"
    other = cache(shared_api, 12.0, augmentation={**box, "size": None, "scale": [0.4, 1.0]})
    body = problem(ask(shared_api, "normkd", specs[0].key, student_cache=other.key), 422, "invalid-request")
    assert "augmentation.scale" in body["detail"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset_fingerprint": "c3" * 32}, "dataset_fingerprint"),
        ({"split": "test"}, 'split: asked for "train", found "test"'),
        ({"views": 1}, "views: asked for 2, found 1"),
        ({"augmentation": {"recipe": "crop_flip", "pad": 2, "flip": True}}, "augmentation.pad: asked for 4, found 2"),
        ({"augmentation_seed": 7}, "augmentation_seed: asked for 0, found 7"),
        ({"classes": 9}, "classes: asked for 10, found 9"),
    ],
)
def test_preview_student_cache_of_other_rows_is_refused(shared_api: Api, changes: dict[str, Any], says: str) -> None:
    spec, other = cache(shared_api, 6.0), cache(shared_api, 7.0, **changes)
    body = problem(ask(shared_api, "dtkd", spec.key, student_cache=other.key), 422, "invalid-request")
    assert says in body["detail"]
    assert "teacher_sha256" not in body["detail"]
    assert body["errors"][0]["pointer"] == "#/student_cache"


def test_preview_student_may_have_been_cached_otherwise(shared_api: Api) -> None:
    changes = {"dtype": "float16", "preprocessing": {"scale": 1}, "output_kind": "log_probabilities"}
    spec, other = cache(shared_api, 8.0), cache(shared_api, 9.0, **changes)
    found = answer(shared_api, "normkd", spec.key, student_cache=other.key)
    assert found["terms"][0]["student_is"] == "student_cache"


@pytest.mark.parametrize(
    ("changes", "slug", "says"),
    [
        ({"method": "kdd"}, "unknown-name", "Did you mean 'kd'?"),
        ({"method": {"preset": "kd", "temperature": 0}}, "invalid-request", "temperature"),
        ({"method": expression("max * spread")}, "invalid-request", "spread"),
        ({"method": "lud"}, "invalid-method", "cannot be previewed"),
        (
            {"method": expression("0 - std")},
            "invalid-request",
            "view 0 of the cache: the student temperature of sample 0",
        ),
        ({"student_cach": "x"}, "unknown-name", "Did you mean 'student_cache'?"),
        ({"epoch": 10, "epochs": 9}, "invalid-request", "epoch is 10; it must not exceed epochs, 9"),
        ({"epoch": 0}, "invalid-request", "#/epoch"),
        ({"bins": 0}, "invalid-request", "#/bins"),
        ({"bins": 201}, "invalid-request", "#/bins"),
    ],
)
def test_preview_what_makes_no_sense_is_refused(shared_api: Api, changes: dict[str, Any], slug: str, says: str) -> None:
    body = {"method": "kd", "cache": cache(shared_api, 10.0).key, **changes}
    refused = problem(shared_api.client.post("/v1/methods/preview", json=body), 422, slug)
    assert says in refused["detail"]


def test_preview_from_disk_loads_neither_torch_nor_an_engine(api: Api) -> None:
    spec = cache(api)
    code = f"""
import sys
import numpy as np
from store import CacheReader
from workers.methods.catalog import parse_method
from workers.methods.preview import preview
with CacheReader.from_key({str(api.settings.caches_dir)!r}, {spec.key!r}) as reader:
    teacher = {{name: values[np.newaxis] for name, values in reader.statistics(0).items()}}
assert preview(parse_method("atkd").expand(), teacher, reader.spec.classes, epoch=1, epochs=1)
print([name for name in ("torch", "torchvision", "ray", "onnxruntime", "sklearn", "PIL") if name in sys.modules])
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------- client and command line


def test_preview_client_sends_what_it_is_given(shared_api: Api) -> None:
    spec, weaker = cache(shared_api, 11.0), cache(shared_api, 12.0)
    with Client(shared_api.url) as client:
        assert client.preview_method("kd", spec.key) == answer(shared_api, "kd", spec.key)
        options: dict[str, Any] = {"student_cache": weaker.key, "epoch": 2, "epochs": 3, "bins": 4}
        found = client.preview_method({"preset": "normkd"}, spec.key, **options)
        assert found == answer(shared_api, "normkd", spec.key, **options)
        with pytest.raises(ApiProblem, match="Did you mean 'kd'"):
            client.preview_method("kdd", spec.key)


@pytest.fixture
def cli(shared_api: Api, capsys: pytest.CaptureFixture[str]) -> Retort:
    """Runs ``retort`` for the shared service: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["--url", shared_api.url, *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_preview_command_prints_quantiles_bars_and_extremes(shared_api: Api, cli: Retort) -> None:
    spec = cache(shared_api, 13.0)
    method = json.dumps(expression("std"))
    status, out, err = cli("preview", method, spec.key[:12], "--bins", 12)
    assert status == 0, err
    (term,) = answer(shared_api, json.loads(method), spec.key, bins=12)["terms"]
    lines = out.splitlines()
    assert lines[0] == "custom on 2 views of 300 samples, 10 classes, epoch 1 of 240"
    side = term["teacher"]
    wanted = {"mean": side["mean"], "std": side["std"], **side["quantiles"]}
    column = {words[0]: float(words[1]) for words in map(str.split, lines) if len(words) == 4 and words[0] in wanted}
    assert column == {name: float(f"{value:.4g}") for name, value in wanted.items()}
    bars = next(line for line in lines if line.startswith("T teacher")).rstrip().rpartition("  ")[0][-12:]
    counts = side["histogram"]["counts"]
    assert 0 < min(counts) < max(counts) / 8, "some bins are lower than a step of the bars"
    assert bars[counts.index(max(counts))] == "█"
    assert [bar != " " for bar in bars] == [count > 0 for count in counts]
    lowest = [line.split() for line in lines if line.startswith("low T teacher")]
    assert [[int(words[4]), int(words[5])] for words in lowest] == [
        [row["view"], row["sample"]] for row in side["lowest"]
    ]
    assert sum(line.startswith("high T teacher") for line in lines) == 5


def test_preview_command_says_what_was_assumed_and_spares_constant_rows(shared_api: Api, cli: Retort) -> None:
    key = cache(shared_api, 14.0).key
    status, out, _ = cli("preview", "normkd", key)
    assert status == 0
    assert "taken to equal the teacher's" in out
    assert "low T" not in cli("preview", "kd", key)[1]
    assert "no term takes a temperature" in cli("preview", "ce", key)[1]


def test_preview_command_prints_the_document_and_resolves_both_keys(shared_api: Api, cli: Retort) -> None:
    spec, weaker = cache(shared_api, 15.0), cache(shared_api, 16.0)
    line = ("--json", "preview", "dtkd", spec.key[:12], "--student-cache", weaker.key[:12], "--epoch", 2, "--epochs", 3)
    status, out, err = cli(*line)
    assert status == 0, err
    options = {"student_cache": weaker.key, "epoch": 2, "epochs": 3}
    assert json.loads(out) == answer(shared_api, "dtkd", spec.key, **options)


@pytest.mark.parametrize(("method", "says"), [("kdd", "Did you mean 'kd'?"), ('{"preset": kd}', "METHOD is not JSON")])
def test_preview_command_refuses_in_one_line(shared_api: Api, cli: Retort, method: str, says: str) -> None:
    status, out, err = cli("preview", method, cache(shared_api, 17.0).key)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert says in err
