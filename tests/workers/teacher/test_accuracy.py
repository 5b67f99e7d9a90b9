"""Measures of a teacher, from its caches: the same figures as from the logits read by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from store import CacheReader
from tests.support.digits import Digits
from workers.data.preparation.holdout_spec import Holdout
from workers.events import ignore, never
from workers.teacher.accuracy import _finite, measure_teacher
from workers.teacher.build_caches import build_caches
from workers.teacher.plan_caches import plan_caches


def test_measure_teacher_measures_what_its_caches_hold(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    job = digits.job("kd").model_copy(update={"validation": Holdout(holdout=0.1)})
    plan = plan_caches(job, digits.folders, ignore, never, threads=1, device="cpu")
    build_caches(plan, digits.folders, ignore, never, threads=1, device="cpu")
    # Several blocks of a cache.
    monkeypatch.setattr("workers.teacher.accuracy._ACCURACY_CELLS", 1000)
    found = measure_teacher(plan, digits.folders)

    assert found.metrics.keys() == {"validation", "test"}
    assert found.metrics["validation"]["rows"] == plan.validation_cache.samples
    assert found.accuracy.validation == found.metrics["validation"]["top1"]
    of_test = found.metrics["test"]
    with CacheReader(digits.folders.caches, plan.test_cache) as reader:
        logits_NC = torch.from_numpy(np.asarray(reader.logits(0), np.float32))
    labels_N = torch.from_numpy(np.asarray(digits.test.labels_N))
    hits_N = logits_NC.argmax(dim=1) == labels_N
    assert found.accuracy.test == of_test["top1"] == pytest.approx(float(hits_N.double().mean()))
    assert of_test["nll"] == pytest.approx(float(F.cross_entropy(logits_NC.double(), labels_N)), rel=1e-5)
    top5_N = (logits_NC.topk(5, dim=1).indices == labels_N[:, None]).any(dim=1)
    assert of_test["top5"] == pytest.approx(float(top5_N.double().mean()))
    assert 0 < of_test["ece"] < 0.1
    per_class = [round(float(hits_N[labels_N == label].double().mean()), 4) for label in range(10)]
    assert of_test["per_class"] == per_class
    assert of_test["best_class"][1] == max(per_class)
    assert of_test["worst_class"][1] == min(per_class)
    assert 0.5 < found.accuracy.views <= 1


def test_measure_teacher_tells_no_infinity() -> None:
    assert (_finite(math.inf), _finite(math.nan), _finite(0.5)) == (None, None, 0.5)
