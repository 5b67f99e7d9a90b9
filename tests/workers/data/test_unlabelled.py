"""Datasets without labels, or with labels for some rows: folders, npz files, holdouts, class names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.workers.data.test_discovery import make_npz
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.discovery import examine
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.errors import InvalidDataset


def make_pictures(folder: Path, *names: str) -> None:
    """Pictures of 4 x 4 pixels of these names below a folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)


def test_folder_of_pictures_without_class_folders_has_no_labels_and_the_test_split_names_the_classes(
    tmp_path: Path,
) -> None:
    make_pictures(tmp_path / "pets", "train/a.png", "train/b.png", "test/dog/1.png", "test/cat/2.png")
    spec = FolderDataset(path="pets")
    source = examine(spec, tmp_path)
    assert (source.class_names, source.classes) == (("cat", "dog"), 2)
    assert source.labelled_samples == {"train": 0, "test": 2}
    train = prepare(spec, "train", tmp_path, tmp_path / "work")
    assert train.labels_N.tolist() == [-1, -1]
    assert train.has_unlabelled
    test = prepare(spec, "test", tmp_path, tmp_path / "work")
    assert (test.labels_N.tolist(), test.class_names, test.has_unlabelled) == ([0, 1], ("cat", "dog"), False)


def test_folder_of_unlabelled_pictures_beside_class_folders_comes_after_them(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pets", "train/_unlabelled/a.png", "train/dog/b.png", "test/dog/1.png", "test/cat/2.png")
    source = examine(FolderDataset(path="pets"), tmp_path)
    assert source.class_names == ("cat", "dog")
    assert (source.samples, source.labelled_samples) == ({"train": 2, "test": 2}, {"train": 1, "test": 2})
    assert [path.name for path in source.files["train"]] == ["b.png", "a.png"]
    train = prepare(FolderDataset(path="pets"), "train", tmp_path, tmp_path / "work")
    assert train.labels_N.tolist() == [1, -1]


def test_folder_without_labels_anywhere_has_classes_by_class_names_or_by_the_teacher(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pets", "train/a.png", "train/b.png")
    assert (examine(FolderDataset(path="pets"), tmp_path).class_names, FolderDataset(path="pets").class_names) == (
        (),
        None,
    )
    named = FolderDataset(path="pets", class_names="dog, cat")
    assert examine(named, tmp_path).class_names == ("dog", "cat")
    unnamed = prepare(FolderDataset(path="pets"), "train", tmp_path, tmp_path / "work")
    assert unnamed.class_names == ()
    assert unnamed.numbered(3).class_names == ("0", "1", "2")
    assert prepare(named, "train", tmp_path, tmp_path / "work").numbered(3).class_names == ("dog", "cat")
    with pytest.raises(ValidationError, match="class_names"):
        FolderDataset(path="pets", class_names=("dog",))


def test_folder_with_unlabelled_test_pictures_has_no_class_that_train_lacks(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pets", "train/cat/a.png", "train/dog/b.png", "test/cat/1.png", "test/_unlabelled/2.png")
    assert examine(FolderDataset(path="pets"), tmp_path).labelled_samples == {"train": 2, "test": 1}
    make_pictures(tmp_path / "pets", "test/dgo/3.png")
    with pytest.raises(InvalidDataset, match=r"test/ has the classes dgo, which train/ \(cat, dog\) lacks"):
        examine(FolderDataset(path="pets"), tmp_path)


def test_folder_of_unlabelled_pictures_has_no_classes_in_it(tmp_path: Path) -> None:
    spec = FolderDataset(path="pets", classes="nested")
    make_pictures(tmp_path / "pets", "train/cat/1.png", "train/dog/2.png", "train/_unlabelled/3.png")
    source = examine(spec, tmp_path)
    assert (source.class_names, source.labelled_samples) == (("cat", "dog"), {"train": 2})
    make_pictures(tmp_path / "pets", "train/_unlabelled/day/4.png")
    for each in (spec, FolderDataset(path="pets")):
        with pytest.raises(InvalidDataset, match=r"_unlabelled holds the folders 'day': put"):
            examine(each, tmp_path)


def test_folder_of_pictures_beside_class_folders_leaves_them_out_and_says_where_they_go(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pets", "train/cat/a.png", "train/dog/b.png", "train/c.png")
    source = examine(FolderDataset(path="pets"), tmp_path)
    assert (source.samples, source.ignored) == ({"train": 2}, (tmp_path / "pets/train/c.png",))
    assert source.notes[0].endswith("to use them without labels put them into train/_unlabelled/")
    with pytest.raises(InvalidDataset, match=r"in train/ itself, if it has no class folders, or in train/_unlabelled/"):
        examine(FolderDataset(path="pets/train/cat"), tmp_path)


def test_class_names_that_lack_a_class_folder_are_refused(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pets", "train/a.png", "test/dog/1.png", "test/cow/2.png")
    with pytest.raises(InvalidDataset, match=r"the test split has the classes cow, which class_names \(dog, cat\)"):
        examine(FolderDataset(path="pets", class_names=("dog", "cat")), tmp_path)
    make_pictures(tmp_path / "pets", "train/_unlabelled/a.png", "train/bird/b.png")
    with pytest.raises(InvalidDataset, match="the train split has the classes bird, which the labelled test"):
        examine(FolderDataset(path="pets"), tmp_path)


def test_description_without_class_names_is_the_same_as_before_there_were_any() -> None:
    assert "class_names" not in FolderDataset(path="pets").model_dump(mode="json")
    assert "class_names" not in NpzDataset(path="a.npz").content_description()


def test_npz_without_training_labels_takes_the_classes_of_the_test_split(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz", train_labels=None)
    spec = NpzDataset(path="a.npz")
    source = examine(spec, tmp_path)
    assert (source.class_names, source.labelled_samples) == (("0", "1", "2"), {"train": 0, "test": 3})
    assert prepare(spec, "train", tmp_path, tmp_path / "work").labels_N.tolist() == [-1] * 6
    assert prepare(spec, "test", tmp_path, tmp_path / "work").labels_N.tolist() == [2, 0, 1]


def test_npz_with_labels_of_minus_one_has_labels_for_some_rows(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz", train_labels=np.array([0, -1, -1, 2, -1, -1]))
    source = examine(NpzDataset(path="a.npz"), tmp_path)
    assert (source.classes, source.labelled) == (3, {"train": 2})
    assert prepare(NpzDataset(path="a.npz"), "train", tmp_path, tmp_path / "work").labels_N.tolist() == [
        0,
        -1,
        -1,
        2,
        -1,
        -1,
    ]
    make_npz(tmp_path / "b.npz", train_labels=np.array([0, -2, -1, 2, -1, -1]))
    with pytest.raises(InvalidDataset, match="holds the label -2"):
        examine(NpzDataset(path="b.npz"), tmp_path)


def test_npz_without_any_label_has_the_classes_that_are_named(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz", train_labels=None, test_labels=None)
    assert examine(NpzDataset(path="a.npz"), tmp_path).classes == 0
    assert examine(NpzDataset(path="a.npz", class_names=("a", "b")), tmp_path).class_names == ("a", "b")


def test_holdout_takes_labelled_rows_of_each_class_and_leaves_the_others_in_train() -> None:
    labels_N = np.full(200, -1)
    labels_N[::10] = np.arange(20) % 2
    rows_V = holdout_rows(labels_N, Holdout(holdout=0.2), ("a", "b"))
    assert np.bincount(labels_N[rows_V]).tolist() == [2, 2]
    loose_V = holdout_rows(labels_N, Holdout(holdout=0.2, stratified=False), ("a", "b"))
    assert (len(loose_V), labels_N[loose_V].min()) == (4, 0)


def test_holdout_of_a_split_without_labels_is_of_all_rows() -> None:
    assert len(holdout_rows(np.full(50, -1), Holdout(holdout=0.1), ())) == 5


def test_npz_labels_of_some_rows_that_lack_0_are_said_to_be_taken_as_0_based(tmp_path: Path) -> None:
    for first, lacking in ((0, ()), (1, ("class 0 has",)), (2, ("classes 0 to 1 have",))):
        labels = np.array([-1, *range(first, first + 5)])
        make_npz(tmp_path / "a.npz", train_labels=labels, test_labels=None, test_images=None)
        notes = examine(NpzDataset(path="a.npz"), tmp_path).notes
        assert tuple(note.split(" no labelled picture; labels are taken as 0-based")[0] for note in notes) == lacking
