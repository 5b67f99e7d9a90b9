"""Caches that a job would have, compared with those that real jobs have made of the digits."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.estimates.caches import KNOWN, NOT_DECODED, ExpectedCaches, expected_caches
from store import Catalog, chunks_bytes
from tests.support.digits import Digits
from tests.support.store_cases import make_spec, write_cache
from workers.config.job import JobSpec
from workers.data.preparation.discovery import examine
from workers.data.preparation.holdout_spec import Holdout
from workers.events import ignore, never
from workers.teacher.cache_plan import KnownTeacher
from workers.teacher.plan_caches import plan_caches


def expected(digits: Digits, job: JobSpec, datasets: Path | None = None, **changes: object) -> ExpectedCaches:
    source = replace(examine(job.dataset, digits.folders.data_root), **changes)  # type: ignore[arg-type]
    spec = digits.plan.train_cache
    teacher = KnownTeacher(
        sha256=spec.teacher_sha256,
        output=spec.teacher_output,
        # Another than theirs: what is there tells.
        output_kind="log_probabilities",
        classes=spec.classes,
        preprocessing=digits.preprocessing,
    )
    catalog = Catalog(digits.folders.caches)
    return expected_caches(job, teacher, source, datasets=datasets or digits.folders.datasets, catalog=catalog)


def test_expected_caches_of_decoded_files_are_found_by_the_keys_that_a_job_gives_them(digits: Digits) -> None:
    found = expected(digits, digits.job("kd"))
    assert {cache.split: cache.key for cache in found.caches} == {spec.split: spec.key for spec in digits.plan.caches}
    assert [(cache.rows_cached, cache.is_exact) for cache in found.caches] == [
        (cache.rows, True) for cache in found.caches
    ]
    assert found.known_by == KNOWN
    for cache in found.caches:
        arrays = (digits.folders.caches / str(cache.key)).glob("*/c/**/*")
        assert cache.chunks_bytes == sum(path.stat().st_size for path in arrays if path.is_file())


def test_expected_caches_know_the_rows_and_key_of_a_holdout(digits: Digits) -> None:
    job = digits.job("kd").model_copy(update={"validation": Holdout(holdout=0.2)})
    plan = plan_caches(job, digits.folders, ignore, never, threads=1, device="cpu")
    [validation] = [cache for cache in expected(digits, job).caches if cache.split == "validation"]
    assert plan.validation_cache is not None
    assert (validation.key, validation.samples) == (plan.validation_cache.key, plan.validation_cache.samples)


def test_expected_caches_of_files_that_were_not_decoded_have_sizes_and_no_keys(digits: Digits, tmp_path: Path) -> None:
    job, known = digits.job("kd"), expected(digits, digits.job("kd"))
    found = expected(digits, job, tmp_path)
    assert found.known_by == NOT_DECODED
    assert [(cache.key, cache.rows_cached) for cache in found.caches] == [(None, 0)] * 2
    sizes = [(cache.rows, cache.chunks_bytes, cache.full_bytes) for cache in known.caches]
    assert [(cache.rows, cache.chunks_bytes, cache.full_bytes) for cache in found.caches] == sizes


@pytest.mark.parametrize(("counts", "samples", "is_exact"), [((), 144, False), ((15, 15, 1412), 145, True)])
def test_expected_caches_of_a_holdout_are_exact_where_classes_are_counted(
    digits: Digits, tmp_path: Path, counts: tuple[int, ...], samples: int, is_exact: bool
) -> None:
    job = digits.job("kd").model_copy(update={"validation": Holdout(holdout=0.1)})
    found = expected(digits, job, tmp_path, class_counts={"train": counts} if counts else {})
    [validation] = [cache for cache in found.caches if cache.split == "validation"]
    assert (validation.samples, validation.is_exact) == (samples, is_exact)


def test_expected_caches_of_an_evaluation_leave_the_training_split_out(digits: Digits) -> None:
    job = digits.job("kd").model_copy(update={"evaluate": True, "students": (), "methods": ()})
    assert [cache.split for cache in expected(digits, job).caches] == ["test"]


@pytest.mark.parametrize("encoding", ["dense", "uint8", {"kind": "sparse", "top": 4, "tail": 4, "temperature": 4.0}])
def test_chunks_bytes_are_those_of_a_complete_cache(tmp_path: Path, encoding: object) -> None:
    spec = make_spec(samples=5000, classes=100, views=2, dtype="float32", encoding=encoding)
    write_cache(tmp_path, spec)
    arrays = [path for path in (tmp_path / spec.key).glob("*/c/**/*") if path.is_file()]
    assert chunks_bytes(spec) == sum(path.stat().st_size for path in arrays)
