"""Folders of pictures without splits, with nested classes, and with links between splits."""

import os
import shutil
from pathlib import Path

import pytest

from tests.workers.data.test_discovery import make_folder
from tests.workers.data.test_prepared import prepare
from workers.config.job import Plan
from workers.data.files.folder_tree import may_hold_classes
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset, InvalidJob

PETS = FolderDataset(path="pets")
NESTED = FolderDataset(path="pets", classes="nested")


def without_splits(root: Path) -> Path:
    """root/pets/{cat,dog}/{0,1}.png."""
    folder = make_folder(root)
    shutil.rmtree(folder / "test")
    for entry in (folder / "train").iterdir():
        entry.rename(folder / entry.name)
    (folder / "train").rmdir()
    return folder


def test_folder_without_splits_is_a_training_split_and_says_what_a_job_needs(tmp_path: Path) -> None:
    folder = without_splits(tmp_path)
    source = examine(PETS, tmp_path)
    assert (source.samples, source.class_names) == ({"train": 4}, ("cat", "dog"))
    assert source.files["train"][0] == folder / "cat/0.png"
    assert '`"test": null` and `"validation": {"holdout": 0.1}`' in source.advice[0]
    assert may_hold_classes(folder)
    train = prepare(PETS, "train", tmp_path)
    assert train.sample_ids is not None
    assert list(train.sample_ids) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    job = {"dataset": PETS.model_dump(), "students": ["cnn_s"], "methods": ["ce"]}
    with pytest.raises(InvalidJob, match=r'"test": null` with `"validation": \{"holdout": 0\.1\}`'):
        Plan.model_validate(job).splits(source.splits)
    held_out = Plan.model_validate({**job, "test": None, "validation": {"holdout": 0.5}})
    assert held_out.splits(source.splits) == ("train", "validation")


def test_folder_with_a_test_split_has_no_advice(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert examine(PETS, tmp_path).advice == ()


def test_folder_of_which_some_folders_are_named_as_splits_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train").rename(folder / "cats")
    with pytest.raises(InvalidDataset, match=r"'test' may be a split or a class beside 'cats': for classes without"):
        examine(PETS, tmp_path)
    (folder / "test").rename(folder / "train")
    shutil.rmtree(folder / "train/cat")
    shutil.rmtree(folder / "train/dog")
    with pytest.raises(InvalidDataset, match=r"train holds no class folder, and beside it are 'cats'"):
        examine(PETS, tmp_path)


def test_folder_beside_the_splits_is_left_out_and_said(tmp_path: Path) -> None:
    (make_folder(tmp_path) / "annotations").mkdir()
    source = examine(PETS, tmp_path)
    assert source.samples == {"train": 4, "test": 4}
    assert source.notes == ("folders beside the splits were left out: annotations",)


def test_nested_classes_are_named_by_their_paths(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for split in ("train", "test"):
        (folder / split / "animal").mkdir()
        (folder / split / "cat").rename(folder / split / "animal/cat")
        shutil.copytree(folder / split / "dog", folder / split / "animal/dog/small")
        shutil.copytree(folder / split / "dog", folder / split / "animal/dog", dirs_exist_ok=True)
    source = examine(NESTED, tmp_path)
    assert source.class_names == ("animal/cat", "animal/dog", "animal/dog/small", "dog")
    assert (source.samples, source.ignored) == ({"train": 8, "test": 8}, ())
    with pytest.raises(InvalidDataset, match=r'animal is empty: .* holds folders, .* with `"classes": "nested"`'):
        examine(PETS, tmp_path)
    assert PETS.model_dump_json() == '{"kind":"folder","path":"pets","image_size":null,"storage":"decoded"}'


def test_nested_classes_without_a_picture_or_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "train/cat/kittens").mkdir()
    with pytest.raises(InvalidDataset, match="lacks; both must"):
        examine(NESTED, tmp_path)
    (folder / "test/cat/kittens").mkdir()
    with pytest.raises(InvalidDataset, match=r"class folder pets/train/cat/kittens is empty"):
        examine(NESTED, tmp_path)
    (folder / "train/cat/kittens/up").symlink_to(folder / "train", target_is_directory=True)
    with pytest.raises(InvalidDataset, match="deeper than 16 folders"):
        examine(NESTED, tmp_path)


@pytest.mark.parametrize("link", ["folder", "symbolic", "hard"])
def test_test_pictures_that_are_links_to_training_pictures_are_counted(tmp_path: Path, link: str) -> None:
    folder = make_folder(tmp_path)
    if link == "folder":
        shutil.rmtree(folder / "test/cat")
        (folder / "test/cat").symlink_to(folder / "train/cat", target_is_directory=True)
    else:
        (folder / "test/cat/1.png").unlink()
        (os.symlink if link == "symbolic" else os.link)(folder / "train/cat/1.png", folder / "test/cat/1.png")
    [note] = examine(PETS, tmp_path).notes
    count, name = (2, "cat/0.png") if link == "folder" else (1, "cat/1.png")
    sentence = f"{count} of 4 pictures of test are files of train, too, by links (test/{name} is train/{name})"
    assert note.startswith(sentence)
