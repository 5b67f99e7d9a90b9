"""Imports of logits: files as people have them, rows matched by id, what is refused, and top-k."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from store import Catalog
from tests.support.imported_logits import LIMIT, Place, npy, npz, parquet, softmax
from tests.support.store_cases import make_spec, write_cache
from workers.config.teacher import OutputKind
from workers.config.views import Views
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import row_ids
from workers.errors import ContractViolation, InvalidJob, InvalidLogits, InvalidTeacher
from workers.teacher.imports import imported_rows, parquet_child
from workers.teacher.imports.imported_specs import (
    check_views,
    find_imported,
    imported_preprocessing,
    is_normalised,
)
from workers.teacher.imports.importing import import_in_process
from workers.teacher.imports.uploaded_file import read_upload
from workers.teacher.preflight.output_kind import FoundKind, OutputOrigin, find_kind
from workers.teacher.preflight.session import Outputs
from workers.teacher.wording import Wording


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("digits"), DigitsDataset())


def test_the_same_logits_are_the_same_cache_in_whatever_form_and_order(place: Place) -> None:
    order = np.random.default_rng(1).permutation(len(place.ids))
    z, ids = place.logits[order], place.ids[order]
    made = place.take(npz(logits=z, sample_ids=ids), source="a notebook")
    assert (made.is_new, made.accuracy is not None and made.accuracy > 0.9, made.warnings) == (True, True, ())
    with place.stored(made.key) as reader:
        np.testing.assert_array_equal(reader.logits(0), place.logits)
        assert reader.spec.dtype == "float32"
        assert reader.provenance["imported"]["source"] == "a notebook"
    others = [
        place.take(npz(np.savez_compressed, logits=z[None], sample_ids=ids.astype("S"))),
        place.take(npz(logits=z.astype(">f8"), sample_ids=ids.astype(int))),
        place.take(npy(place.logits), rows="in_order", source="elsewhere"),
        place.take(npy(np.asfortranarray(place.logits)), rows="in_order"),
        place.take(parquet(logits=z, sample_id=ids.tolist())),
        place.take(npz(logits=z[:, ::-1], sample_ids=ids), class_names=list("9876543210")),
    ]
    assert {(each.key, each.is_new) for each in others} == {(made.key, False)}
    assert Catalog(place.folders.caches).get(made.key).pinned


def test_float16_stays_float16(place: Place) -> None:
    made = place.take(npy(place.logits.astype(np.float16)), rows="in_order")
    with place.stored(made.key) as reader:
        assert reader.spec.dtype == "float16"
        np.testing.assert_array_equal(reader.logits(0), place.logits.astype(np.float16))
    with pytest.raises(InvalidLogits, match="float16 ends"):
        place.take(npy(place.logits * 1e5), rows="in_order", dtype="float16")


def test_views_of_a_parquet_file_are_told_by_their_column(place: Place) -> None:
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 2}
    both, count = np.stack([place.logits, place.logits + 1]), len(place.ids)
    rows = np.random.default_rng(2).permutation(2 * count)
    view, ids = np.repeat([0, 1], count)[rows], np.tile(place.ids, 2)[rows]
    columns = {"logits": both.reshape(-1, 10)[rows], "view": view.tolist(), "sample_id": ids.tolist()}
    made = place.take(parquet(**columns), views=views)
    for stored in (both, np.asfortranarray(both)):
        assert place.take(npz(logits=stored, sample_ids=place.ids), views=views).key == made.key
    with place.stored(made.key) as reader:
        np.testing.assert_array_equal(reader.logits(1), place.logits + 1)
    found = find_imported({"train": made.key}, place.folders.caches)
    check_views(found, Views.model_validate(views), None)
    with pytest.raises(InvalidJob, match=r'"count":2'):
        check_views(found, Views(), None)
    check_views(found, Views.model_validate(views), Holdout(holdout=0.1))
    with pytest.raises(InvalidJob, match="logits of one picture"):
        check_views(found, Views.model_validate({**views, "seed": 1}), None)
    mixed = {**views, "augmentation": {"recipe": "crop_flip", "mixup": {}}}
    made = place.take(parquet(**columns), views=mixed)
    found, wanted = find_imported({"train": made.key}, place.folders.caches), Views.model_validate(mixed)
    check_views(found, wanted, None)
    # Rows that are held out are no partners of a mixed view, and the logits are of views mixed with all.
    with pytest.raises(InvalidJob, match=r"holds 0\.1 of .* leave `validation` out, or import logits of views"):
        check_views(found, wanted, Holdout(holdout=0.1))
    short = {name: column[:-1] for name, column in columns.items()}
    with pytest.raises(InvalidLogits, match="every view needs a row"):
        place.read(parquet(**short))


def test_probabilities_are_told_by_their_values_and_lose_the_level(place: Place) -> None:
    p = softmax(place.logits)
    told = place.take(npy(p.astype(np.float32)), rows="in_order")
    assert "softmax" in " ".join(told.warnings)
    with place.stored(told.key) as reader:
        np.testing.assert_allclose(reader.logits(0), np.log(p), atol=1e-4)
        assert reader.spec.output_kind == "log_probabilities"
        assert is_normalised(reader.spec)
    as_logs = place.take(npy(np.log(p)), rows="in_order")
    with place.stored(as_logs.key) as reader:
        # Log-probabilities are logits, and no logits of a level.
        assert (reader.spec.output_kind, is_normalised(reader.spec)) == ("logits", True)
    with pytest.raises(ContractViolation, match="between 0 and 1"):
        place.take(npy(1 / (1 + np.exp(-place.logits))), rows="in_order")
    with pytest.raises(ContractViolation, match="output_kind is 'probabilities'"):
        place.take(npy(place.logits), rows="in_order", output_kind="probabilities")
    # Some rows tell the kind, and all have to be of it: more than are looked at first, and one of the others is wrong.
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 6}
    several = np.stack([p.astype(np.float32)] * 6)
    several[0, 702] *= 2
    with pytest.raises(ContractViolation, match=r"their rows sum to 1 .. 2"):
        place.take(npy(several), rows="in_order", views=views)


def test_logits_of_a_holdout_are_matched_by_the_ids_that_its_rows_have_in_train(place: Place) -> None:
    train = prepare(place.dataset, "train", place.folder, place.folders.datasets)
    held = hold_out(train, Holdout(holdout=0.1), place.folders.datasets)
    rows = np.array(list(row_ids(held))).astype(int)
    content = npz(logits=place.logits[rows], sample_ids=rows)
    made = place.take(content, split="validation", validation={"holdout": 0.1})
    with place.stored(made.key) as reader:
        assert reader.spec.dataset_fingerprint == held.fingerprint
    with pytest.raises(InvalidJob, match="is of the validation split"):
        find_imported({"train": made.key}, place.folders.caches)
    with pytest.raises(ValidationError, match="leave validation out"):
        place.take(content, validation={"holdout": 0.1})


def test_doubted_logits_are_refused_until_a_client_insists(place: Place) -> None:
    shuffled = npy(np.roll(place.logits, 7, axis=0))
    with pytest.raises(ContractViolation, match=r"guessing would.*`accept_teacher`"):
        place.take(shuffled, rows="in_order")
    with pytest.raises(ContractViolation, match="label order seems to differ"):
        place.take(npy(place.logits[:, [1, 0, *range(2, 10)]]), rows="in_order")
    made = place.take(shuffled, rows="in_order", accept_teacher=True)
    assert "for the upload says accept_teacher" in " ".join(made.warnings)


def test_messages_of_imports_speak_of_the_file_and_of_no_teacher(place: Place) -> None:
    """Each next step is one that an import has."""
    p, names = softmax(place.logits), list("abcdefghij")
    in_other_order = place.logits[:, [1, 0, *range(2, 10)]]
    for values, options, said in (
        (in_other_order, {}, "Import the file with `class_names`.*the file's order here, or write the file with"),
        (place.logits, {"output_kind": "probabilities"}, "the import's output_kind.*its values.*: import it with"),
        (1 / (1 + np.exp(-place.logits)), {}, "The file's values.*Import the logits, .*in `output_kind` "),
        (place.logits[:, 1:], {}, "the file has 9 classes.*give the file its `class_names`"),
        (place.logits, {"class_names": names}, "that the file lacks.*The file's are.*in the import's `class_map`"),
        (place.logits, {"class_names": names[1:]}, "the file's output has 10 columns"),
        (place.logits, {"class_map": {"0": 11}}, "the file's output has columns"),
    ):
        with pytest.raises((ContractViolation, InvalidTeacher), match=said) as refused:
            place.take(npy(values), rows="in_order", **options)
        assert "teacher" not in str(refused.value).replace("accept_teacher", "")
    for values in (p, 100 * p, np.log(p)):
        told = " ".join(place.take(npy(values.astype(np.float32)), rows="in_order").warnings)
        assert ("file" in told, "teacher" in told) == (True, False)


def test_rows_of_several_kinds_are_refused(place: Place) -> None:
    p = softmax(place.logits).astype(np.float32)
    for other in (p, np.log(p)):
        mixed = place.logits.copy()
        mixed[700:800] = other[700:800]
        with pytest.raises(ContractViolation, match=r"100 of 1,442 rows \(the first is row 700"):
            place.take(npy(mixed), rows="in_order")
        assert place.take(npy(mixed), rows="in_order", output_kind="logits").is_new


def test_kinds_are_found_piece_by_piece(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def measured(
        origin: OutputOrigin, outputs_RN: Outputs, stated: OutputKind | None, *, wording: Wording
    ) -> FoundKind:
        sizes.append(outputs_RN.size)
        return find_kind(origin, outputs_RN, stated, wording=wording)

    monkeypatch.setattr(imported_rows, "_CELLS", 4000)
    monkeypatch.setattr(imported_rows, "find_kind", measured)
    place.take(npy(softmax(place.logits).astype(np.float32)), rows="in_order")
    assert (max(sizes), sum(sizes)) == (4000, 4000 + place.logits.size)


def test_rows_of_a_view_are_counted_in_one_pass() -> None:
    """Of an upload that decides how many views there are."""

    class Listed(list[int]):
        def count(self, value: int) -> int:
            raise AssertionError

    places_R, shape, _ = parquet_child._places(Listed([0, 2, 1, 1, 0, 2]), None, 6)
    assert (places_R.tolist(), shape) == ([0, 4, 2, 3, 1, 5], (3, 2))


def test_lossy_encodings_are_refused_of_splits_that_results_are_measured_on(place: Place, tmp_path: Path) -> None:
    for encoding in ("uint8", {"kind": "sparse", "top": 2, "tail": 2, "temperature": 1}):
        with pytest.raises(ValidationError, match=r"split is test, on which results are measured.*\"dense\""):
            place.take(npy(place.logits), split="test", rows="in_order", encoding=encoding)
    spec = make_spec(
        preprocessing=imported_preprocessing("logits", None), split="test", encoding="uint8", dtype="float32"
    )
    train = make_spec(preprocessing=imported_preprocessing("logits", None), encoding="uint8", dtype="float32")
    for each in (spec, train):
        write_cache(tmp_path, each)
    with pytest.raises(InvalidJob, match="has the encoding uint8, which is lossy"):
        find_imported({"train": train.key, "test": spec.key}, tmp_path)
    assert find_imported({"train": train.key}, tmp_path) == {"train": train}


def test_imports_are_judged_by_their_worst_view(place: Place) -> None:
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 3}
    rolled = npy(np.stack([place.logits, place.logits, np.roll(place.logits, 7, axis=0)]))
    with pytest.raises(ContractViolation, match=r"view 2 of 3 .*guessing would"):
        place.take(rolled, rows="in_order", views=views)
    made = place.take(rolled, rows="in_order", views=views, accept_teacher=True)
    assert made.accuracy is not None
    assert made.accuracy < 0.3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z, ids: npy(z), "no sample ids"),
        (lambda z, ids: npz(logits=z[5:], sample_ids=ids[5:]), r"5 samples of the train split have no row \('0'"),
        (lambda z, ids: npz(logits=z, sample_ids=[*ids[:-1], "x.png"]), r"not in the train split \('x.png'\)"),
        (lambda z, ids: npz(logits=z, sample_ids=[*ids[:-1], ids[0]]), "'0' is there twice, in rows 0 and 1441"),
        (lambda z, ids: npz(logits=z, sample_ids=ids[1:]), "one for each"),
        (lambda z, ids: npz(logits=np.where(z > 7, np.nan, z), sample_ids=ids), "not finite in row"),
        (lambda z, ids: npz(logits=z.astype(np.float64) * 1e300, sample_ids=ids), "not finite in row 0"),
        (lambda z, ids: npz(logits=z.astype(int), sample_ids=ids), "int64: save them as float32"),
        (lambda z, ids: npz(logits=[z, z], sample_ids=ids), "logits of 2 views, and `views` says 1"),
        (lambda z, ids: npz(logits=z[0], sample_ids=ids), r"shape \[10\]"),
        (lambda z, ids: npz(scores=z, sample_ids=ids), "needs either `logits`"),
        (lambda z, ids: npz(logits=np.array([{"a": 1}]), sample_ids=ids), "Python objects"),
        (lambda z, ids: npz(logits=z, sample_ids=np.array([{"a": 1}] * len(z))), "Python objects"),
        (lambda z, ids: npz(logits=z, sample_ids=ids)[:-100], "npz cannot be read"),
        (lambda z, ids: npy(z)[:-4], "end before their last row"),
        (lambda z, ids: npy(np.zeros((0, 10))), "none may be empty"),
        (lambda z, ids: b"logits", "by its first bytes"),
        (lambda z, ids: b"\x93NUMPY\x01\x00\x10\x00{'descr': open()}", "header is not numpy's"),
        (lambda z, ids: parquet(logits=[1.0, 2.0]), "list of numbers"),
        (lambda z, ids: parquet(logits=[[1.0], [1.0, 2.0]]), "one for each class"),
        (lambda z, ids: parquet(logits=[[1.0, None], [1.0, 2.0]]), "without a value"),
        (lambda z, ids: parquet(logits=z)[:200], "Parquet file cannot be read"),
        (lambda z, ids: parquet(logits=z, sample_id=[*ids[:-1].tolist(), "0"]), "two rows of view 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_what_to_do(
    place: Place, change: Callable[[Any, Any], bytes], said: str
) -> None:
    with pytest.raises(InvalidLogits, match=said):
        place.take(change(place.logits, place.ids))


def test_rows_beyond_the_limit_are_refused_by_their_header(place: Place) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1000)})
    with pytest.raises(InvalidLogits, match="RETORT_LOGITS_MAX_BYTES"):
        place.read(header.getvalue())


def test_an_import_that_was_killed_is_completed_by_the_next(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from store import CacheWriter

    content = npy(place.logits * 1.5)
    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            place.take(content, rows="in_order")
    made = place.take(content, rows="in_order")
    assert made.is_new
    with place.stored(made.key) as reader:
        np.testing.assert_array_equal(reader.logits(0), place.logits * np.float32(1.5))


def test_an_upload_is_read_confined_and_imported_in_a_process_of_its_own(place: Place, tmp_path: Path) -> None:
    path, target = tmp_path / "upload", tmp_path / "rows"
    for content in (npz(logits=place.logits, sample_ids=place.ids), parquet(logits=place.logits)):
        path.write_bytes(content)
        target.write_bytes(b"")
        read = read_upload(path, target, bytes_max=LIMIT, timeout_s=60)
        np.testing.assert_array_equal(read.values_VNK()[0], place.logits)
    made = import_in_process(place.task(read, rows="in_order"), 120)
    assert made.accuracy is not None
    with pytest.raises(InvalidLogits, match="no sample ids"):
        import_in_process(place.task(read), 120)
