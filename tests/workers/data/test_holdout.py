"""Splits by name, holdouts and the datasets that list rows of another."""

import json
import pickle
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.workers.data.test_discovery import make_folder
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import decoded
from workers.data.preparation.discovery import examine
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset, SubsetDataset, open_prepared
from workers.errors import InvalidDataset

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def train(work: Path) -> Dataset:
    return prepare(DigitsDataset(), "train", work, work)


# -------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_holdout_rows_have_the_share_of_each_class_and_are_a_function_of_labels_and_seed(fraction: float) -> None:
    labels_N = np.repeat(np.arange(3), [100, 40, 20])[np.random.default_rng(0).permutation(160)]
    rows_V = holdout_rows(labels_N, Holdout(holdout=fraction), NAMES)
    assert np.bincount(labels_N[rows_V]).tolist() == [round(fraction * n) for n in (100, 40, 20)]
    assert rows_V.dtype == np.int64
    assert (np.diff(rows_V) > 0).all()
    assert np.array_equal(rows_V, holdout_rows(labels_N, Holdout(holdout=fraction), NAMES))
    other_V = holdout_rows(labels_N, Holdout(holdout=fraction, seed=1), NAMES)
    assert not np.array_equal(rows_V, other_V)


def test_holdout_rows_are_those_of_earlier_versions() -> None:
    labels_N = np.arange(30) % 3
    assert holdout_rows(labels_N, Holdout(holdout=0.2, seed=7), NAMES).tolist() == [4, 5, 9, 18, 23, 28]


def test_holdout_rows_leave_a_class_its_last_picture_and_refuse_what_cannot_be() -> None:
    lonely_N = np.array([0, 0, 0, 0, 1, 2])
    assert np.bincount(lonely_N[holdout_rows(lonely_N, Holdout(holdout=0.9), NAMES)], minlength=3).tolist() == [3, 0, 0]
    with pytest.raises(InvalidDataset, match=r"of 0.1 holds none of 6 training pictures out .*`\"stratified\": false`"):
        holdout_rows(lonely_N, Holdout(holdout=0.1), NAMES)
    with pytest.raises(
        InvalidDataset, match=r"leaves class \d \('\w'\) without a training picture .*\"stratified\": true"
    ):
        holdout_rows(lonely_N, Holdout(holdout=0.8, stratified=False), NAMES)


# ----------------------------------------------------------------------------------------- dataset


def test_hold_out_lists_rows_copies_no_picture_and_opens_again_by_its_fingerprint(train: Dataset, work: Path) -> None:
    held = hold_out(train, Holdout(holdout=0.1), work)
    assert isinstance(held, SubsetDataset)
    assert (held.split, held.classes, held.picture_shape) == ("validation", 10, train.picture_shape)
    assert np.array_equal(held.labels_N, np.asarray(train.labels_N)[held.rows_N])
    assert np.array_equal(held.take(slice(3, 9)), train.take(held.rows_N[3:9]))
    assert held.channel_mean == train.channel_mean
    assert {path.name for path in held.path.iterdir()} == {"rows.npy", "meta.json"}
    for again in (open_prepared(work, held.fingerprint), pickle.loads(pickle.dumps(held))):
        assert np.array_equal(again.rows_N, held.rows_N)
    assert hold_out(train, Holdout(holdout=0.1), work).fingerprint == held.fingerprint
    others = {hold_out(train, other, work).fingerprint for other in (Holdout(holdout=0.2), Holdout(seed=1))}
    assert len({held.fingerprint, train.fingerprint, *others}) == 4


def test_hold_out_goes_with_the_copy_that_it_is_rows_of_and_is_made_again(tmp_path: Path) -> None:
    train = prepare(DigitsDataset(), "train", tmp_path, tmp_path)
    held = hold_out(train, Holdout(), tmp_path)
    listed = {copy.fingerprint: copy for copy in decoded.copies(tmp_path)}
    assert listed[held.fingerprint].split == "validation"
    decoded.remove(tmp_path, train.fingerprint, datetime.now(UTC) + timedelta(hours=1))
    assert not held.path.exists()
    again = hold_out(prepare(DigitsDataset(), "train", tmp_path, tmp_path), Holdout(), tmp_path)
    assert again.fingerprint == held.fingerprint


def test_open_prepared_refuses_rows_that_are_not_there(tmp_path: Path) -> None:
    train = prepare(DigitsDataset(), "train", tmp_path, tmp_path)
    held = hold_out(train, Holdout(), tmp_path)
    rows_V = np.load(held.path / "rows.npy", allow_pickle=False)
    rows_V[-1] = train.samples
    np.save(held.path / "rows.npy", rows_V)
    with pytest.raises(InvalidDataset, match=r"not rows of 1442 pictures\); prepare it again"):
        open_prepared(tmp_path, held.fingerprint)
    # A job makes it again.
    again = hold_out(train, Holdout(), tmp_path)
    assert isinstance(again, SubsetDataset)
    assert int(again.rows_N[-1]) < train.samples
    shutil.rmtree(train.path)
    with pytest.raises(InvalidDataset, match="prepare it again"):
        open_prepared(tmp_path, held.fingerprint)


def test_decoded_sweep_leaves_a_holdout_that_is_being_written(tmp_path: Path) -> None:
    partial = tmp_path / f"{decoded.PARTIAL_PREFIX}{'0' * 64}{decoded.ROWS_SUFFIX}"
    partial.mkdir(parents=True)
    (tmp_path / decoded.SOURCES).mkdir()
    assert decoded.sweep(tmp_path) == 1
    assert not partial.exists()


# ------------------------------------------------------------------------------------- split names


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_folder_splits_are_found_by_the_names_that_people_use(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path)
    shutil.copytree(folder / "test", folder / name)
    (folder / "train").rename(folder / "Train")
    source = examine(FolderDataset(path="pets"), tmp_path)
    assert source.splits == ("train", "validation", "test")
    assert source.samples["validation"] == source.samples["test"]
    shutil.rmtree(folder / "test")
    assert examine(FolderDataset(path="pets"), tmp_path).splits == ("train", "validation")


def test_folder_splits_that_are_ambiguous_or_differ_in_classes_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    shutil.copytree(folder / "test", folder / "val")
    shutil.copytree(folder / "test", folder / "valid")
    with pytest.raises(InvalidDataset, match=r"'val' and 'valid', which both mean the validation split"):
        examine(FolderDataset(path="pets"), tmp_path)
    shutil.rmtree(folder / "valid")
    next(iter((folder / "val").iterdir())).rename(folder / "val" / "zebra")
    with pytest.raises(InvalidDataset, match=r"val/"):
        examine(FolderDataset(path="pets"), tmp_path)


def test_npz_splits_are_found_by_the_names_that_people_use(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 5, 5), dtype=np.uint8), np.arange(4) % 2
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    assert examine(NpzDataset(path="a.npz"), tmp_path).splits == ("train",)
    arrays |= {"val_images": images[:2], "val_labels": labels[:2]}
    np.savez(tmp_path / "a.npz", **arrays)
    assert examine(NpzDataset(path="a.npz"), tmp_path).samples == {"train": 4, "validation": 2}
    held = prepare(NpzDataset(path="a.npz"), "validation", tmp_path, tmp_path / "work")
    assert (held.split, held.samples) == ("validation", 2)
    np.savez(tmp_path / "a.npz", **arrays, validation_images=images, validation_labels=labels)
    with pytest.raises(InvalidDataset, match="validation_images and val_images, which both mean the validation split"):
        examine(NpzDataset(path="a.npz"), tmp_path)
    del arrays["val_images"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InvalidDataset, match="lacks val_images"):
        examine(NpzDataset(path="a.npz"), tmp_path)
    assert json.dumps(examine(DigitsDataset(), tmp_path).splits) == '["train", "test"]'
