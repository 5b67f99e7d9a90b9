"""Lossy encodings: what is kept, how it is spelled on disk, and that soft targets stay unbiased."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from pydantic import ValidationError

from store import (
    CacheCorrupt,
    CacheIncomplete,
    CacheReader,
    CacheSpec,
    CacheWriter,
    Catalog,
    InvalidArgument,
    NotStorable,
    ReaderClosed,
    RowOutOfRange,
    SparseEncoding,
    chunk_files,
    documents,
    layout,
    read_reference,
)
from store.encodings import sparse, uint8
from store.statistics import STATISTICS, Float32
from tests.support.store_cases import (
    children,
    digests,
    make_labels,
    make_logits,
    make_spec,
    tree,
    write_all,
    write_blocks,
    write_cache,
)

UINT8_KEY = "feed3facba7ac8d5da470d9bc40bc08b4cfc9dacbc394efe37f904a3b17a3ed0"
SPARSE_KEY = "c144c6496ec4cd17c1777f6eaff1dbd2d5430a67ee01b7ea7066589f67d3b81c"
SPARSE = {"kind": "sparse", "top": 3, "tail": 4, "temperature": 4}
UINT8_SPEC = make_spec(encoding="uint8", dtype="float32", views=2)
SPARSE_SPEC = make_spec(encoding=SPARSE, dtype="float32", views=2, classes=40)
LOSSY = pytest.mark.parametrize("spec", [UINT8_SPEC, SPARSE_SPEC], ids=["uint8", "sparse"])


def softmax(z: Float32, temperature: float) -> npt.NDArray[np.float64]:
    x = z.astype(np.float64) / temperature
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p: npt.NDArray[np.float64] = e / e.sum(axis=-1, keepdims=True)
    return p


def through(
    encoding: SparseEncoding, z_NC: Float32, labels_N: npt.NDArray[np.int64], view: int = 0
) -> tuple[Float32, dict[str, npt.NDArray[Any]]]:
    """Decoded rows [N, C] of samples 0, 1, ... of a view, and what was stored of them."""
    samples_N = np.arange(len(z_NC))
    stored = sparse.encode(encoding, z_NC, labels_N, view, samples_N)
    decoded_NC = np.empty_like(z_NC)
    sparse.decode(encoding, stored, view, samples_N, decoded_NC)
    return decoded_NC, stored


# ---------------------------------------------------------------------------------------------------- the specification


def test_encoding_dense_has_the_key_from_before_there_were_others() -> None:
    assert make_spec().key == "fc777d449bede7b0c144587ef19d35922a99b845cf24ec5f8ca4f90e1a63364e"
    assert make_spec(encoding="dense").model_dump(mode="json")["encoding"] == "dense"


def test_encoding_keys_of_lossy_caches_never_change() -> None:
    assert make_spec(encoding="uint8", dtype="float32").key == UINT8_KEY
    assert make_spec(encoding=SPARSE, dtype="float32", classes=40).key == SPARSE_KEY


@pytest.mark.parametrize("change", [{"top": 4}, {"tail": 5}, {"temperature": 2}, {"seed": 1}])
def test_encoding_parameters_each_change_the_key_and_are_named(change: dict[str, object]) -> None:
    other = make_spec(encoding={**SPARSE, **change}, dtype="float32", views=2, classes=40)
    assert other.key != SPARSE_SPEC.key
    (difference,) = SPARSE_SPEC.differences(other)
    assert difference.startswith(f"encoding.{next(iter(change))}: asked for")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "uint4"}, 'an encoding is "dense", "uint8" or'),
        ({"encoding": {"kind": "uint8"}}, 'an encoding is "dense", "uint8" or'),
        ({"encoding": "uint8", "dtype": "float16"}, "decoded to float32, but dtype is 'float16'"),
        ({"encoding": {**SPARSE, "top": 0}}, "encoding.sparse.top"),
        ({"encoding": {**SPARSE, "tail": 0}}, "encoding.sparse.tail"),
        ({"encoding": {**SPARSE, "temperature": 0}}, "encoding.sparse.temperature"),
        ({"encoding": {**SPARSE, "temperature": 1001}}, "encoding.sparse.temperature"),
        ({"encoding": {**SPARSE, "k": 3}}, "encoding.sparse.k"),
        ({"encoding": {"kind": "sparse", "top": 3, "tail": 4}}, "encoding.sparse.temperature"),
        ({"encoding": SPARSE, "classes": 8}, "are 8 classes, and there are 8: lower them"),
        ({"encoding": SPARSE, "classes": 15}, "take 30 bytes a row, a dense float16 row of 15 classes 30"),
    ],
)
def test_encoding_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_spec(**{"dtype": "float32", **changes})
    assert make_spec(encoding=SPARSE, classes=16, dtype="float32").stored_row_bytes == 30


@pytest.mark.parametrize(
    ("encoding", "classes", "stored_bytes", "block_rows"),
    [
        ("uint8", 1000, 1008, 4096),
        ("uint8", 4097, 4105, 2048),
        ({**SPARSE, "top": 50, "tail": 49}, 1000, 200 + 104 + 4, 4096),
        ({**SPARSE, "top": 50, "tail": 49}, 65_536, 200 + 104 + 4, 1024),  # 256 MiB decoded
        ({**SPARSE, "top": 50, "tail": 49}, 65_537, 200 + 208 + 4, 512),
    ],
)
def test_encoding_has_these_bytes_a_row_and_these_rows_a_block(
    encoding: object, classes: int, stored_bytes: int, block_rows: int
) -> None:
    spec = make_spec(encoding=encoding, classes=classes, dtype="float32")
    assert (spec.stored_row_bytes, spec.row_bytes, spec.block_rows) == (stored_bytes, 4 * classes, block_rows)
    assert spec.numpy_dtype == np.float32


# ---------------------------------------------------------------------------------------------------------------- uint8


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 3000.0])
@pytest.mark.parametrize("shift", [0.0, -50.0, 60_000.0])
def test_uint8_is_off_by_half_a_step_at_most(scale: float, shift: float) -> None:
    z_NC = (np.random.default_rng(0).normal(0, scale, (500, 100)) + shift).astype(np.float32)
    stored = uint8.encode(z_NC)
    decoded_NC = np.empty_like(z_NC)
    uint8.decode(stored, decoded_NC)
    apart_N = np.abs(decoded_NC.astype(np.float64) - z_NC).max(axis=1)
    assert (apart_N <= uint8.errors(stored)).all()
    step_N = (z_NC.max(axis=1).astype(np.float64) - z_NC.min(axis=1)) / 255
    assert (apart_N <= step_N / 2 + 1e-6 * np.abs(z_NC).max(axis=1)).all()
    assert (stored["logits"].max(axis=1) == np.where(step_N > 0, 255, 0)).all()
    np.testing.assert_array_equal(decoded_NC.min(axis=1), z_NC.min(axis=1))


def test_uint8_keeps_a_row_of_equal_logits() -> None:
    z_NC = np.full((2, 5), -3.25, np.float32)
    decoded_NC = np.empty_like(z_NC)
    uint8.decode(uint8.encode(z_NC), decoded_NC)
    np.testing.assert_array_equal(decoded_NC, z_NC)


# --------------------------------------------------------------------------------------------------------------- sparse


@pytest.mark.parametrize("label_rank", [0, 2, 17], ids=["the largest", "among them", "in the tail"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sparse_soft_targets_are_unbiased_for_every_class(label_rank: int, temperature: float) -> None:
    draws, classes = 20_000, 24
    encoding = SparseEncoding(kind="sparse", top=3, tail=4, temperature=temperature)
    z_C = np.random.default_rng(1).normal(0, 3, classes).astype(np.float16).astype(np.float32)
    ranked_C = np.argsort(-z_C)
    z_NC = np.broadcast_to(z_C, (draws, classes)).copy()
    decoded_NC, _ = through(encoding, z_NC, np.full(draws, ranked_C[label_rank]))

    targets_NC, exact_C = softmax(decoded_NC, temperature), softmax(z_C, temperature)
    np.testing.assert_allclose(targets_NC.sum(axis=1), 1, rtol=1e-12)
    kept = {*ranked_C[:3], ranked_C[label_rank]}
    for c in range(classes):
        mean, error = targets_NC[:, c].mean(), targets_NC[:, c].std() / np.sqrt(draws)
        if c in kept:
            np.testing.assert_allclose(targets_NC[:, c], exact_C[c], rtol=1e-5)
        else:
            assert abs(mean - exact_C[c]) < 4.5 * error, f"class {c}: {mean} +- {error}, exactly {exact_C[c]}"
            # And the test could have told: the estimate does vary, by less than what is estimated.
            assert 0 < error < 0.2 * exact_C[c]


def test_sparse_sets_are_drawn_as_midzuno_has_it() -> None:
    """Every set of the tail, with the probability that makes the ratio unbiased: sum of e over it, normalised."""
    draws, classes = 60_000, 9
    encoding = SparseEncoding(kind="sparse", top=1, tail=3, temperature=2.0)
    z_C = np.array([5, 0, 1.5, -1, 2, 0.5, -2, 3, 1], np.float32)  # 0 the largest, 7 the label, 7 others
    decoded_NC, stored = through(encoding, np.broadcast_to(z_C, (draws, classes)).copy(), np.full(draws, 7))
    tail = [1, 2, 3, 4, 5, 6, 8]
    e = {c: float(np.exp(z_C[c] / 2.0)) for c in tail}
    found = Counter(tuple(c for c in tail if row[c]) for row in decoded_NC > sparse.ABSENT / 2)
    sets = list(itertools.combinations(tail, 3))
    assert set(found) == set(sets)
    weight = {s: sum(e[c] for c in s) for s in sets}
    for s in sets:
        expected = draws * weight[s] / sum(weight.values())
        assert abs(found[s] - expected) < 4.5 * np.sqrt(expected), s
    first = Counter(stored["classes"][:, 2].tolist())
    for c in tail:
        expected = draws * e[c] / sum(e.values())
        assert abs(first[c] - expected) < 4.5 * np.sqrt(expected), c


@pytest.mark.parametrize("classes", [16, 300, 70_000])
def test_sparse_row_keeps_its_largest_its_label_and_a_sample_of_others(classes: int) -> None:
    encoding = SparseEncoding(kind="sparse", top=5, tail=9, temperature=4.0)
    rng = np.random.default_rng(classes)
    rows = 20 if classes > 1000 else 400
    z_NC = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    labels_N = np.where(rng.random(rows) < 0.5, z_NC.argmax(axis=1), rng.integers(0, classes, rows))
    decoded_NC, stored = through(encoding, z_NC, labels_N)
    assert stored["classes"].dtype == (np.uint16 if classes <= 65_536 else np.uint32)
    for z_C, found_C, label, own in zip(z_NC, decoded_NC, labels_N, stored["classes"], strict=True):
        top = set(np.argsort(-z_C)[:5].tolist())
        present = set(np.flatnonzero(found_C > sparse.ABSENT / 2).tolist())
        sample = present - top - {int(label)}
        assert own[:5].tolist() == sorted(top, key=lambda c: -z_C[c])
        assert own[5] == label
        assert int(own[6]) in sample
        assert len(sample) == 9
        certain = sorted(top | {int(label)})
        np.testing.assert_array_equal(found_C[certain], z_C[certain].astype(np.float16).astype(np.float32))
        # The sample is its logits moved by one number, which gives it the tail's whole mass.
        drawn = sorted(sample)
        moved = found_C[drawn] - z_C[drawn].astype(np.float16)
        assert np.ptp(moved) < 1e-4
        tail_mass = 1 - softmax(z_C, 4.0)[certain].sum()
        np.testing.assert_allclose(softmax(found_C, 4.0)[drawn].sum(), tail_mass, rtol=1e-3)
        assert (found_C[sorted(set(range(classes)) - present)] == sparse.ABSENT).all()


def test_sparse_absent_class_has_no_probability_and_no_infinity() -> None:
    encoding = SparseEncoding(kind="sparse", top=1, tail=1, temperature=1000.0)
    for level in (-65_504, 0, 65_504):
        decoded_NC, _ = through(encoding, np.full((1, 30), level, np.float32), np.zeros(1, np.int64))
        x_C = (decoded_NC[0] - decoded_NC.max()) / np.float32(1000)
        p_C = np.exp(x_C)
        assert p_C.dtype == np.float32
        assert np.count_nonzero(p_C) == (decoded_NC[0] > sparse.ABSENT / 2).sum() <= 3
        assert not (0 * decoded_NC).any()


def test_sparse_draws_differ_between_samples_views_and_seeds_and_nowhere_else() -> None:
    z_NC = np.broadcast_to(np.linspace(3, -3, 200, dtype=np.float32), (64, 200)).copy()
    labels_N = np.zeros(64, np.int64)
    encodings = [SparseEncoding(kind="sparse", top=2, tail=6, temperature=2.0, seed=seed) for seed in (0, 1)]
    first, again = (through(encodings[0], z_NC, labels_N)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == 64
    for other in (through(encodings[0], z_NC, labels_N, view=1)[0], through(encodings[1], z_NC, labels_N)[0]):
        assert (first != other).any(axis=1).all()


def test_sparse_rows_are_encoded_alike_however_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    z_NC = np.random.default_rng(0).normal(0, 3, (50, 40)).astype(np.float32)
    encoding, labels_N = SparseEncoding.model_validate(SPARSE), np.arange(50) % 40
    _, whole = through(encoding, z_NC, labels_N)
    monkeypatch.setattr(sparse, "_SLAB_ELEMENTS", 7 * 40)
    _, parts = through(encoding, z_NC, labels_N)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


# -------------------------------------------------------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished cache of each encoding. Do not write there."""
    folder = tmp_path_factory.mktemp("caches")
    for spec in (UINT8_SPEC, SPARSE_SPEC):
        write_cache(folder, spec)
    return folder


@LOSSY
def test_encoding_arrays_are_plain_zarr_of_the_documented_types(root: Path, spec: CacheSpec) -> None:
    group = root / spec.key
    opened = zarr.open_group(group, mode="r", zarr_format=3)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATISTICS, (2, spec.samples))
    shapes["reference"] = (256, spec.classes)
    types = dict.fromkeys(STATISTICS, "float32") | {"reference": "float32"}
    if spec.encoding == "uint8":
        shapes |= {"logits": (2, spec.samples, 10), "scale": (2, spec.samples), "offset": (2, spec.samples)}
        types |= {"logits": "uint8", "scale": "float32", "offset": "float32"}
    else:
        shapes |= {"logits": (2, spec.samples, 8), "classes": (2, spec.samples, 5)}
        shapes["tail_logsumexp"] = (2, spec.samples)
        types |= {"logits": "float16", "classes": "uint16", "tail_logsumexp": "float32"}
    arrays = {name: np.asarray(opened[name]) for name in shapes}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert {name: str(array.dtype) for name, array in arrays.items()} == types
    assert {path.name for path in group.iterdir() if path.is_dir()} == {*shapes, "commits"}
    np.testing.assert_array_equal(arrays["reference"], make_logits(spec)[:256])
    files = {name for name in tree(group) if "/c/" in name}
    assert {name for name in files if name.startswith("reference")} == {"reference/c/0/0"}
    records = {
        name: json.loads(content)["files"] for name, content in tree(group).items() if name.startswith("commits")
    }
    assert set(itertools.chain.from_iterable(records.values())) == files
    assert [name for name, record in records.items() if "reference/c/0/0" in record] == ["commits/0-0.json"]
    for name in files:  # padded with NaN or 0, and checksummed
        content = (group / name).read_bytes()
        assert int.from_bytes(content[-4:], "little") == google_crc32c.value(content[:-4])
    assert set((group / "logits/c/1/2/0").read_bytes()[-40:-4]) <= ({0} if spec.encoding == "uint8" else {0, 0x7E})


@LOSSY
def test_reader_of_a_lossy_cache_decodes_the_same_rows_by_every_way(root: Path, spec: CacheSpec) -> None:
    with CacheReader(root, spec) as reader:
        order = np.random.default_rng(0).permutation(spec.samples)
        for view in (1, 0):
            whole_NC = reader.logits(view)
            assert whole_NC.dtype == np.float32
            row_map = reader.row_map(view, order)
            assert len(row_map) == spec.samples
            row_map.prefetch(0, 700)
            np.testing.assert_array_equal(row_map.gather(100, 700), whole_NC[order[100:700]])
            out_BC = np.empty((5, spec.classes), np.float32)
            rows = np.array([0, spec.samples - 1, 4096, 4095, 0], np.uint16)
            assert reader.gather(view, rows, out_BC) is out_BC
            np.testing.assert_array_equal(out_BC, whole_NC[rows])
            truth_NC = make_logits(spec, view)
            if spec.encoding == "uint8":
                assert np.abs(whole_NC - truth_NC).max() < np.ptp(truth_NC, axis=1).max() / 509
            else:
                present_NC = whole_NC > sparse.ABSENT / 2
                labels_N = make_labels(spec)
                every = np.arange(spec.samples)
                np.testing.assert_array_equal(
                    whole_NC[every, labels_N], truth_NC[every, labels_N].astype(np.float16).astype(np.float32)
                )
                assert set(np.unique(present_NC.sum(axis=1))) == {7, 8}
                assert (whole_NC.max(axis=1) >= truth_NC.max(axis=1).astype(np.float16)).all()
            np.testing.assert_array_equal(reader.statistics(view)["max"], truth_NC.max(axis=1))
        with pytest.raises(RowOutOfRange):
            reader.gather(0, np.array([spec.samples]))
        with pytest.raises(RowOutOfRange):
            reader.row_map(2, np.array([0]))
        with pytest.raises(InvalidArgument, match="float32"):
            reader.gather(0, np.array([1]), np.empty((1, spec.classes), np.float16))
        assert not reader.exceeds_memory
    for late in (lambda: reader.gather(0, np.array([1])), lambda: row_map.gather(0, 1), lambda: row_map.prefetch(1, 2)):
        with pytest.raises(ReaderClosed):
            late()


@LOSSY
def test_writer_of_a_lossy_cache_that_is_killed_and_goes_on_leaves_the_same_bytes(
    tmp_path: Path, root: Path, spec: CacheSpec
) -> None:
    context = children()
    listener, ready = context.Pipe(duplex=False)
    child = context.Process(target=write_all, args=(tmp_path, spec, -1, None, ready))
    child.start()
    assert listener.recv() == "opened"
    child.join(timeout=0.05)
    child.kill()
    child.join()
    writer = CacheWriter(tmp_path, spec, provenance={"device": "cpu"})
    write_blocks(writer, writer.pending_blocks())
    writer.finish()
    assert digests(writer.path) == digests(root / spec.key)
    (writer.path / "commits/0-0.json").unlink()  # a block of a finished cache, written again
    write_blocks(writer, [0])
    writer.finish()
    assert digests(writer.path) == digests(root / spec.key)


@LOSSY
def test_verify_of_a_lossy_cache_names_a_damaged_file(tmp_path: Path, root: Path, spec: CacheSpec) -> None:
    for name in spec.arrays:
        folder = tmp_path / name
        group = Path(shutil.copytree(root / spec.key, folder / spec.key))
        path = group / layout.chunk_name(name, spec, 0)
        content = bytearray(path.read_bytes())
        content[7] ^= 1
        path.write_bytes(content)
        report = Catalog(folder).verify(spec.key)
        assert [problem.split(":")[0] for problem in report.problems] == [str(path)]
        path.unlink()
        with pytest.raises(CacheCorrupt, match=f"{name}.*missing"):
            CacheReader(folder, spec)


def forge(group: Path, spec: CacheSpec, name: str, values: npt.NDArray[np.generic]) -> None:
    """Put other values in a chunk of block 0, with a checksum, a record and a marker that fit them."""
    old = documents.load_record(group, spec, 0)
    assert old is not None
    path = layout.chunk_name(name, spec, 0)
    payload = values.tobytes()
    checksum = google_crc32c.value(payload)
    (group / path).write_bytes(payload + checksum.to_bytes(4, "little"))
    new = old.model_copy(update={"files": {**old.files, path: old.files[path].model_copy(update={"crc32c": checksum})}})
    (group / layout.record_name(spec, 0)).write_bytes(new.to_bytes())
    records = [documents.load_record(group, spec, block) for block in range(spec.blocks)]
    completion = documents.read_completion(group)
    assert completion is not None
    digest = documents.commits_sha256(record for record in records if record is not None)
    (group / "COMPLETE").write_text(completion.model_copy(update={"commits_sha256": digest}).model_dump_json())


FORGERIES = [
    (UINT8_SPEC, "scale", lambda a: a * np.float32(1.05), {"max", "std", "mean", "sharpness", "reference"}),
    (UINT8_SPEC, "offset", lambda a: a + np.float32(0.5), {"max", "min", "mean", "sharpness", "reference"}),
    (UINT8_SPEC, "logits", lambda a: np.roll(a, 1, axis=1), {"reference"}),
    (UINT8_SPEC, "reference", lambda a: a + np.float32(0.01), {"reference"}),
    (
        SPARSE_SPEC,
        "logits",
        lambda a: a[:, ::-1].copy(),
        {"logits", "max", "sharpness", "tail_logsumexp", "reference"},
    ),
    (SPARSE_SPEC, "classes", lambda a: np.roll(a, 1, axis=0), {"sharpness", "reference"}),
    (SPARSE_SPEC, "classes", lambda a: a + np.uint16(40), {"classes", "reference"}),
    (SPARSE_SPEC, "classes", lambda a: np.repeat(a[:, :1], 5, axis=1), {"classes", "reference"}),
    (SPARSE_SPEC, "tail_logsumexp", lambda a: a + np.float32(2), {"tail_logsumexp"}),
    (SPARSE_SPEC, "sharpness", lambda a: a - np.float32(3), {"sharpness", "reference"}),
    (SPARSE_SPEC, "max", lambda a: a + np.float32(0.1), {"max", "reference"}),
    (SPARSE_SPEC, "min", lambda a: a + np.float32(9), {"min", "reference"}),
]


@pytest.mark.parametrize(("spec", "array", "change", "named"), FORGERIES)
def test_verify_of_a_lossy_cache_finds_what_does_not_belong_together(
    tmp_path: Path, root: Path, spec: CacheSpec, array: str, change: object, named: set[str]
) -> None:
    assert callable(change)
    assert Catalog(root).verify(spec.key).ok
    group = Path(shutil.copytree(root / spec.key, tmp_path / spec.key))
    record = documents.load_record(group, spec, 0)
    assert record is not None
    forge(group, spec, array, change(chunk_files.read_chunk(group, spec, array, 0, record)))
    CacheReader(tmp_path, spec).close()  # it cannot know
    problems = Catalog(tmp_path).verify(spec.key).problems
    assert {Path(problem.split(":")[0]).relative_to(group).parts[0] for problem in problems} == named


def test_verify_holds_a_sparse_cache_at_temperature_1_to_its_exact_sharpness(tmp_path: Path) -> None:
    spec = make_spec(encoding={**SPARSE, "temperature": 1}, dtype="float32", classes=40, samples=300)
    group = write_cache(tmp_path, spec).path
    assert Catalog(tmp_path).verify(spec.key).ok
    record = documents.load_record(group, spec, 0)
    assert record is not None
    values = chunk_files.read_chunk(group, spec, "tail_logsumexp", 0, record)
    forge(group, spec, "tail_logsumexp", np.concatenate((values + np.float32(0.05), np.full(4096 - 300, np.nan, "f4"))))
    assert any("sharpness" in problem for problem in Catalog(tmp_path).verify(spec.key).problems)


@LOSSY
def test_reference_is_there_as_soon_as_block_0_is(tmp_path: Path, spec: CacheSpec) -> None:
    writer = CacheWriter(tmp_path, spec)
    write_blocks(writer, [1])
    with pytest.raises(CacheIncomplete, match="block 0 is not committed"):
        read_reference(tmp_path, spec)
    write_blocks(writer, [0])
    reference = read_reference(tmp_path, spec)
    np.testing.assert_array_equal(reference.exact, make_logits(spec)[:256])
    np.testing.assert_array_equal(
        reference.statistics["mean"], reference.exact.mean(axis=1, dtype=np.float64).astype("f4")
    )
    write_blocks(writer, writer.pending_blocks())
    writer.finish()
    with CacheReader(tmp_path, spec) as reader:
        np.testing.assert_array_equal(reference.decoded, reader.gather(0, np.arange(256)))
    with pytest.raises(InvalidArgument, match="dense"):
        read_reference(tmp_path, make_spec())


def test_sparse_cache_needs_the_labels_of_its_rows(tmp_path: Path) -> None:
    spec = make_spec(encoding=SPARSE, dtype="float32", classes=40, samples=5)
    writer, z_NC = CacheWriter(tmp_path, spec), make_logits(spec)
    with pytest.raises(InvalidArgument, match="give the labels"):
        writer.write_block(0, z_NC)
    with pytest.raises(InvalidArgument, match="must be 5 integers"):
        writer.write_block(0, z_NC, np.zeros(4, np.int64))
    with pytest.raises(InvalidArgument, match="must be 5 integers"):
        writer.write_block(0, z_NC, np.zeros((5, 1), np.int64))
    with pytest.raises(InvalidArgument, match="label 40 does not exist"):
        writer.write_block(0, z_NC, np.array([0, 1, 40, 2, 3]))
    assert writer.pending_blocks() == [0]


@LOSSY
def test_encoding_refuses_logits_beyond_float16(tmp_path: Path, spec: CacheSpec) -> None:
    one = CacheSpec.model_validate({**spec.model_dump(), "samples": 1, "views": 1})
    z_NC = make_logits(one)
    z_NC[0, 3] = 65_505
    with pytest.raises(NotStorable, match="use a dense cache with dtype"):
        CacheWriter(tmp_path, one).write_block(0, z_NC, np.zeros(1, np.int64))
