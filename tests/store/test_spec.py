"""What identifies a cache, how it is cut into blocks, what store/ exports, and the statistics of a row."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

import store
from store import errors
from store.statistics import STATISTICS, row_statistics
from tests.support.store_cases import make_logits, make_spec


def test_store_has_these_public_names() -> None:
    assert store.__all__ == [
        "AddressSpaceExhausted",
        "AmbiguousKey",
        "CacheBusy",
        "CacheCorrupt",
        "CacheIncomplete",
        "CacheLease",
        "CacheMismatch",
        "CacheNotFound",
        "CachePinned",
        "CacheReader",
        "CacheSpec",
        "CacheWriter",
        "Catalog",
        "DiskFull",
        "Encoding",
        "InvalidArgument",
        "NotStorable",
        "QuotaExceeded",
        "ReaderClosed",
        "Reference",
        "Reservation",
        "RowOutOfRange",
        "SparseEncoding",
        "StoreError",
        "chunks_bytes",
        "full_bytes",
        "read_reference",
        "read_view_statistics",
    ]
    assert all(hasattr(store, name) for name in store.__all__)


def test_store_loads_no_heavy_package() -> None:
    heavy = ("torch", "ray", "fastapi", "starlette", "onnxruntime", "PIL", "sklearn", "workers", "service")
    program = f"import store, sys; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("AddressSpaceExhausted", MemoryError),
        ("AmbiguousKey", LookupError),
        ("CacheBusy", BlockingIOError),
        ("CacheCorrupt", ValueError),
        ("CacheIncomplete", RuntimeError),
        ("CacheMismatch", ValueError),
        ("CacheNotFound", LookupError),
        ("CachePinned", PermissionError),
        ("DiskFull", OSError),
        ("InvalidArgument", ValueError),
        ("NotStorable", ValueError),
        ("QuotaExceeded", RuntimeError),
        ("ReaderClosed", ValueError),
        ("RowOutOfRange", IndexError),
    ],
)
def test_errors_are_store_errors_and_the_builtins_a_caller_expects(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    error = kind("why", 2, 1) if name == "DiskFull" else kind("why")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, errors.StoreError)
    assert isinstance(again, builtin)
    assert str(again) == "why"
    assert vars(again) == vars(error)


def test_spec_key_never_changes() -> None:
    # A changed literal here means that every cache in the world is lost: raise FORMAT_VERSION instead.
    assert make_spec().key == "fc777d449bede7b0c144587ef19d35922a99b845cf24ec5f8ca4f90e1a63364e"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher_sha256", "c3" * 32),
        ("teacher_output", "output"),
        ("output_kind", "log_probabilities"),
        ("dataset_fingerprint", "c3" * 32),
        ("split", "test"),
        ("samples", 100),
        ("classes", 11),
        ("preprocessing", {"mean": [0.5, 0.25, 0.126], "layout": "NCHW"}),
        ("augmentation", {"recipe": "none", "pad": 4}),
        ("augmentation_seed", 1),
        ("views", 2),
        ("dtype", "float32"),
    ],
)
def test_spec_fields_each_change_the_key_and_are_named_as_the_difference(field: str, value: object) -> None:
    spec, other = make_spec(), make_spec(**{field: value})
    assert other.key != spec.key
    (difference,) = spec.differences(other)
    assert difference.startswith(field)


def test_spec_key_ignores_the_order_of_keys_but_not_the_spelling_of_numbers() -> None:
    spec = make_spec(preprocessing={"a": 1, "b": 2})
    assert make_spec(preprocessing={"b": 2, "a": 1}).key == spec.key
    assert make_spec(preprocessing={"b": 2.0, "a": 1}).key != spec.key
    assert spec.differences(make_spec(preprocessing={"b": 2.0, "a": 1})) == ["preprocessing.b: asked for 2, found 2.0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_sha256": "A1" * 32},
        {"dataset_fingerprint": "b2"},
        {"samples": 0},
        {"classes": 1},
        {"views": 0},
        {"dtype": "bfloat16"},
        {"encoding": "sparse"},
        {"format_version": 2},
        {"preprocessing": {"mean": float("nan")}},
        {"augmentation": {"when": object()}},
        {"colour": "red"},
    ],
)
def test_spec_that_is_impossible_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("classes", "dtype", "rows"),
    [
        (2, "float16", 4096),
        (1000, "float32", 4096),
        (1024, "float32", 4096),  # exactly 16 MiB
        (1025, "float32", 2048),
        (21841, "float16", 256),
        (1 << 24, "float32", 1),
    ],
)
def test_spec_block_is_4096_rows_halved_until_it_has_16_mebibytes(classes: int, dtype: str, rows: int) -> None:
    assert make_spec(classes=classes, dtype=dtype).block_rows == rows


def test_spec_blocks_cover_every_row_of_every_view_once() -> None:
    spec = make_spec(views=3)
    seen = np.zeros((spec.views, spec.samples), int)
    for block in range(spec.blocks):
        view, start, stop = spec.block_range(block)
        seen[view, start:stop] += 1
    assert (seen == 1).all()
    for block in (-1, spec.blocks):
        with pytest.raises(errors.InvalidArgument, match=f"block {block} .* 0 to 8"):
            spec.block_range(block)


def test_statistics_are_those_of_a_double_precision_reference() -> None:
    logits = make_logits(make_spec(samples=300, classes=100))
    exact = logits.astype(np.float64)
    expected = {
        "max": exact.max(1),
        "min": exact.min(1),
        "mean": exact.mean(1),
        "std": exact.std(1, ddof=1),
        "sharpness": np.log(np.exp(exact).sum(1)),
    }
    found = row_statistics(logits)
    assert tuple(found) == STATISTICS
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_almost_equal_nulp(found[name], values.astype(np.float32), 1)


def test_statistics_stay_finite_where_a_naive_sum_of_exponentials_overflows() -> None:
    found = row_statistics(np.array([[60000.0, -60000.0], [-60000.0, -60000.0]], np.float32))
    np.testing.assert_allclose(found["sharpness"], [60000.0, -60000.0 + np.log(2)], rtol=1e-7)
    np.testing.assert_allclose(found["std"], [np.sqrt(2) * 60000.0, 0.0], rtol=1e-7)
