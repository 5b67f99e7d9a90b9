"""Sample ids beside the rows of prepared splits, and pictures that two splits have in common."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workers.data.test_discovery import make_folder, make_npz
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import row_digests, sample_ids
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.data.preparation.row_digests import overlap_warnings
from workers.errors import InvalidDataset
from workers.events import Split

PETS = FolderDataset(path="pets")


def ids(dataset: Dataset) -> list[str] | None:
    return None if dataset.sample_ids is None else list(dataset.sample_ids)


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def both(root: Path) -> dict[Split, Dataset]:
    splits: tuple[Split, ...] = ("train", "test")
    return {split: prepare(PETS, split, root, root / "work") for split in splits}


def test_sample_ids_of_files_are_their_names_and_of_arrays_their_rows(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    os.rename(folder / "train/cat/1.png", os.fsencode(folder) + b"/train/cat/\xff.png")
    found = ids(prepare(PETS, "train", tmp_path, tmp_path / "work"))
    assert found == ["train/cat/0.png", "train/cat/\udcff.png", "train/dog/0.png", "train/dog/1.png"]
    make_npz(tmp_path / "a.npz")
    assert ids(prepare(NpzDataset(path="a.npz"), "test", tmp_path, tmp_path / "work")) == ["0", "1", "2"]
    digits = prepare(DigitsDataset(), "test", tmp_path, tmp_path / "work")
    assert digits.sample_ids is not None
    assert (len(digits.sample_ids), digits.sample_ids[354]) == (355, "354")


def test_sample_ids_of_a_holdout_are_those_of_its_rows(tmp_path: Path) -> None:
    make_folder(tmp_path, pictures=4)
    train = both(tmp_path)["train"]
    held = hold_out(train, Holdout(holdout=0.5), tmp_path / "work")
    found, rows = ids(held), held.rows_of(train)
    assert found is not None
    assert rows is not None
    every = ids(train)
    assert every is not None
    assert found == [every[row] for row in rows]


def test_sample_ids_of_the_same_pictures_are_names_where_any_source_has_names(tmp_path: Path) -> None:
    """Numbers of rows replace no names; names replace numbers, and ids of an earlier version are none."""
    make_folder(tmp_path)
    train = both(tmp_path)["train"]
    split: dict[str, np.ndarray] = {
        "train_images": train.take(slice(0, 4)),
        "train_labels": np.asarray(train.labels_N),
        "class_names": np.array(["cat", "dog"]),
    }
    save(tmp_path / "b.npz", split)
    again = prepare(NpzDataset(path="b.npz"), "train", tmp_path, tmp_path / "work")
    assert again.fingerprint == train.fingerprint
    assert ids(again) == ids(train)
    (train.path / sample_ids.FILE).unlink()
    assert ids(open_prepared(tmp_path / "work", train.fingerprint)) is None
    save(tmp_path / "c.npz", split)
    assert ids(prepare(NpzDataset(path="c.npz"), "train", tmp_path, tmp_path / "work")) == ["0", "1", "2", "3"]
    os.utime(tmp_path / "pets/train/cat/0.png", (1, 1))
    assert ids(both(tmp_path)["train"]) == ids(again)


def test_write_ids_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="NUL character"):
        sample_ids.write_ids(tmp_path, ["a\0b"])


def test_pictures_of_train_in_test_are_counted_pixel_by_pixel(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    # make_folder gives both splits the same pictures.
    [warning] = overlap_warnings(both(tmp_path))
    assert warning.startswith("4 of 4 pictures of test are in train, too, pixel by pixel, test/cat/0.png among them")
    for path in (folder / "test").rglob("*.png"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    assert overlap_warnings(both(tmp_path)) == ()
    Image.new("RGB", (4, 4), (1, 1, 0)).save(folder / "test/dog/1.png", "BMP")
    [warning] = overlap_warnings(both(tmp_path))
    assert warning.startswith("1 of 4 pictures of test are in train, too, pixel by pixel, test/dog/1.png")


def test_held_out_pictures_count_against_those_that_stay(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, pictures=4)
    train = both(tmp_path)["train"]
    held = hold_out(train, Holdout(holdout=0.25), tmp_path / "work")
    assert overlap_warnings({"train": train, "validation": held}) == ()
    for path in (folder / "train/cat").iterdir():
        Image.new("RGB", (4, 4), (7, 7, 7)).save(path)
    train = both(tmp_path)["train"]
    held = hold_out(train, Holdout(holdout=0.25), tmp_path / "work")
    [warning] = overlap_warnings({"train": train, "validation": held})
    assert warning.startswith("1 of 2 pictures of validation are in train, too")


def test_splits_that_an_earlier_version_has_decoded_are_not_compared(tmp_path: Path) -> None:
    make_folder(tmp_path)
    splits = both(tmp_path)
    folder = splits["test"].path
    meta = json.loads((folder / "meta.json").read_text())
    del meta["size_bytes"][row_digests.FILE]
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / row_digests.FILE).unlink()
    test = open_prepared(folder.parent, splits["test"].fingerprint)
    assert (test.row_digests, test.samples) == (None, 4)
    assert overlap_warnings({"train": splits["train"], "test": test}) == ()
