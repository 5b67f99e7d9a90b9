"""Imports of the top k of an API: the rest of a row is shared, and the store keeps it sparse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from store import SparseEncoding
from tests.support.imported_logits import Place, npz, softmax
from workers.config.cache import CacheOptions
from workers.config.job import JobSpec
from workers.data.kinds.npz import NpzDataset
from workers.errors import ContractViolation, InvalidLogits, LossyCache
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.teacher.build_caches import build_caches
from workers.teacher.plan_caches import plan_caches


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """400 pictures of 200 classes."""
    folder = tmp_path_factory.mktemp("many")
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    np.savez(folder / "many.npz", images=images, labels=np.arange(400) % 200)
    return Place(folder, NpzDataset(path="many.npz"))


@pytest.mark.parametrize("kind", ["log_probabilities", "probabilities", "percent"])
def test_top_k_shares_what_is_left_and_becomes_sparse(many: Place, kind: str) -> None:
    p = softmax(2 * many.logits)
    indices = np.argsort(-p, axis=1)[:, :5]
    values = np.take_along_axis(p, indices, axis=1)
    whole = np.repeat((1 - values.sum(axis=1, keepdims=True)) / 195, 200, axis=1)
    np.put_along_axis(whole, indices, values, axis=1)
    sent = {"log_probabilities": np.log(values), "probabilities": values, "percent": 100 * values}[kind]
    content = npz(values=sent, indices=indices, sample_ids=many.ids)
    made = many.take(content, output_kind=None if kind == "log_probabilities" else kind)
    assert "5 of 200 classes are known" in " ".join(made.warnings)
    with many.stored(made.key) as reader:
        assert reader.spec.encoding == SparseEncoding(kind="sparse", top=5, tail=16, temperature=1.0)
        decoded = softmax(reader.logits(0))
        # What was sent is there exactly but for float16, and the label's; the rest is drawn.
        np.testing.assert_allclose(np.take_along_axis(decoded, indices, axis=1), values, rtol=2e-2, atol=1e-6)
    dense = many.take(content, output_kind=kind, encoding="dense")
    with many.stored(dense.key) as reader:
        np.testing.assert_allclose(softmax(reader.logits(0).astype(np.float64)), whole, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda v, i: (v, i), "logits", "nobody knows what the other classes have"),
        (lambda v, i: (v, i * 0), None, "has a class twice"),
        (lambda v, i: (v, i + 190), None, "classes are 0 to 199"),
        (lambda v, i: (v, i - 200), None, "index is negative"),
        (lambda v, i: (v + 1, i), None, "probabilities that sum to"),
        # Logits, which are no log-probabilities; and logarithms of another base.
        (lambda v, i: (v - 6, i), None, "the 195 other classes would have 0.00.*of logits send the log-softmax"),
        (lambda v, i: (v / np.log(2) - 4, i), "log_probabilities", "the least here has"),
        (lambda v, i: (np.exp(v), i), "percent", "state the kind that the values are of"),
        (lambda v, i: (v, i[:, 1:]), None, "one for each"),
        (lambda v, i: (v, i.astype(float)), None, "as integers"),
    ],
)
def test_top_k_that_is_none_is_refused(many: Place, change: Callable[..., Any], kind: str | None, said: str) -> None:
    p = softmax(2 * many.logits)
    indices = np.argsort(-p, axis=1)[:, :5]
    values, indices = change(np.log(np.take_along_axis(p, indices, axis=1)), indices)
    with pytest.raises(InvalidLogits, match=said):
        many.take(npz(values=values, indices=indices, sample_ids=many.ids), output_kind=kind)


def test_top_k_of_all_classes_sums_to_one(many: Place) -> None:
    p = softmax(many.logits)
    indices = np.tile(np.arange(200), (400, 1))
    made = many.take(npz(values=np.log(p).astype(np.float16), indices=indices, sample_ids=many.ids))
    with many.stored(made.key) as reader:
        np.testing.assert_allclose(softmax(reader.logits(0)), p, rtol=2e-2, atol=1e-6)
    with pytest.raises(InvalidLogits, match=r"sum to 0\.9.*all classes are there"):
        many.take(npz(values=np.log(0.9 * p), indices=indices, sample_ids=many.ids))


def test_a_job_of_sparse_imported_logits_is_judged_by_its_encoding_and_runs_no_teacher(many: Place) -> None:
    p = softmax(many.logits)
    indices = np.argsort(-p, axis=1)[:, :5]
    content = npz(values=np.take_along_axis(p, indices, axis=1), indices=indices, sample_ids=many.ids)
    key = many.take(content, output_kind="probabilities").key
    job = JobSpec.model_validate(
        {
            "teacher": {"path": many.folders.caches / key, "caches": {"train": key}},
            "dataset": many.dataset,
            "students": ["cnn_s"],
            "methods": [{"preset": "kd", "temperature": 1}],
            "training": {"epochs": 1, "batch_size": 64},
            "validation": {"holdout": 0.4},
            "test": None,
            "cache": {"allow_lossy": True},
        }
    )
    told: list[Any] = []
    plan = plan_caches(job, many.folders, told.append, never, threads=1)
    assert (plan.train_cache.key, plan.test_cache, plan.validation_cache) == (key, None, None)
    assert plan.fingerprint("validation") != plan.fingerprint("train")
    assert build_caches(plan, many.folders, told.append, never, threads=1) == 0
    said = " ".join(getattr(event, "message", "") for event in told)
    assert "no logits of the validation split were imported" in said
    assert "sparse" in said
    # Their level is lost to a softmax, and no other temperature than theirs is exact.
    with pytest.raises(ContractViolation, match="dtkd"):
        plan_caches(job.model_copy(update={"methods": (parse_method("dtkd"),)}), many.folders, ignore, never, threads=1)
    hot = (parse_method({"preset": "kd", "temperature": 8}),)
    strict = job.model_copy(update={"methods": hot, "cache": CacheOptions()})
    plan = plan_caches(strict, many.folders, ignore, never, threads=1)
    with pytest.raises(LossyCache):
        build_caches(plan, many.folders, ignore, never, threads=1)
