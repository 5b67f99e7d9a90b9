"""Warnings of a dry run from an earlier cache of the teacher."""

import errno
from pathlib import Path

import pytest

from service.api.job_warnings import gradient_warnings_of_plan
from tests.support.digits import Digits
from workers.config.job import Plan


def _plan(digits: Digits, *methods: object) -> Plan:
    job = digits.job(*methods)  # type: ignore[arg-type]
    return Plan.model_validate(job.model_dump(exclude={"teacher"}))


def test_job_warnings_name_a_method_with_steep_first_gradients_where_a_cache_of_the_teacher_is_there(
    digits: Digits, tmp_path: Path
) -> None:
    plan = _plan(digits, "kd", {"preset": "normkd", "kd_weight": 9.0})
    sha256 = digits.plan.teacher.sha256
    assert sha256 is not None
    [warning] = gradient_warnings_of_plan(plan, sha256, digits.folders.caches)
    assert "'normkd(kd_weight=9)' begins with a gradient of about" in warning
    assert f"estimated from cache {digits.plan.train_cache.key[:12]}" in warning
    assert gradient_warnings_of_plan(plan, "0" * 64, digits.folders.caches) == []
    assert gradient_warnings_of_plan(plan, sha256, tmp_path / "none") == []


def test_job_warnings_say_nothing_of_a_cache_that_cannot_be_read(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(digits, {"preset": "normkd", "kd_weight": 9.0})
    sha256 = digits.plan.teacher.sha256
    assert sha256 is not None
    # Evicted between the listing and the opening.
    monkeypatch.setattr("service.api.job_warnings.max", lambda *_, **__: (0.0, "0" * 64), raising=False)
    assert gradient_warnings_of_plan(plan, sha256, digits.folders.caches) == []


def test_job_warnings_are_none_where_the_disk_fails(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(digits, {"preset": "normkd", "kd_weight": 9.0})
    sha256 = digits.plan.teacher.sha256
    assert sha256 is not None

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("store.chunk_files.read_chunk", fail)
    assert gradient_warnings_of_plan(plan, sha256, digits.folders.caches) == []
