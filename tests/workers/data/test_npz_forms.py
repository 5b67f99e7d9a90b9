"""Npz files that are not written for this project: names, ranks, dtypes and labels as other tools have them."""

from pathlib import Path

import numpy as np
import pytest

from tests.workers.data.test_discovery import make_npz
from tests.workers.data.test_prepared import prepare
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset

NOISE = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)


def save(root: Path, **arrays: np.ndarray) -> NpzDataset:
    np.savez(root / "a.npz", **arrays)
    return NpzDataset(path="a.npz")


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y"), ("X_train", "y_train")])
def test_npz_without_splits_is_a_training_split(tmp_path: Path, names: tuple[str, str]) -> None:
    images, labels = names
    spec = save(tmp_path, **{images: NOISE[:, 0], labels: np.arange(6) % 2})
    assert examine(spec, tmp_path).samples == {"train": 6}
    np.testing.assert_array_equal(prepare(spec, "train", tmp_path).take(slice(None))[..., 0], NOISE[:, 0])


def test_npz_channels_go_by_the_shape_unless_both_ends_may_be_meant(tmp_path: Path) -> None:
    labels = np.arange(6) % 2
    spec = save(tmp_path, train_images=NOISE, train_labels=labels)
    np.testing.assert_array_equal(prepare(spec, "train", tmp_path).take(slice(None)), NOISE.transpose(0, 2, 3, 1))
    save(tmp_path, train_images=NOISE[..., :3], train_labels=labels)
    with pytest.raises(InvalidDataset, match=r'train_images is uint8 \[6, 3, 4, 3\].*"channels": "first" or "last"'):
        examine(spec, tmp_path)
    for channels, expected in (("first", NOISE[..., :3].transpose(0, 2, 3, 1)), ("last", NOISE[..., :3])):
        given = NpzDataset.model_validate({"path": "a.npz", "channels": channels})
        np.testing.assert_array_equal(prepare(given, "train", tmp_path).take(slice(None)), expected)
    save(tmp_path, train_images=NOISE, train_labels=labels)
    with pytest.raises(InvalidDataset, match=r"train_images is uint8 \[6, 3, 4, 5\]; expected"):
        examine(NpzDataset(path="a.npz", channels="last"), tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        ([1, 2, 3, 3, 2, 1], ("1", "2", "3"), "1 is class 0, 2 is class 1, 3 is class 2"),
        ([0, 7, 9, 9, 7, 0], ("0", "7", "9"), "0 is class 0, 7 is class 1, 9 is class 2"),
        ([[3], [1], [2], [1], [2], [3]], ("1", "2", "3"), "1 is class 0"),
        ([0, 1, 2, 2, 1, 0], ("0", "1", "2"), None),
        ([False, True, True, True, False, False], ("0", "1"), None),
    ],
)
def test_npz_labels_are_numbered_and_it_is_said(
    tmp_path: Path, labels: list[object], names: tuple[str, ...], note: str | None
) -> None:
    given = np.array(labels)
    make_npz(tmp_path / "a.npz", train_labels=given, test_labels=given[1:4])
    spec = NpzDataset(path="a.npz")
    source = examine(spec, tmp_path)
    assert source.class_names == names
    assert [note in said for said in source.notes] == ([] if note is None else [True])
    for split, of_split in (("train", given), ("test", given[1:4])):
        found = prepare(spec, split, tmp_path)
        assert [names[label] for label in found.labels_N] == [str(int(label)) for label in of_split.reshape(-1)]


def test_npz_labels_from_1_take_names_and_others_with_gaps_do_not(tmp_path: Path) -> None:
    names = np.array(["cat", "cow", "dog"])
    changed = {"train_labels": np.array([1, 2, 3, 3, 2, 1]), "test_labels": np.array([3, 1, 2]), "class_names": names}
    make_npz(tmp_path / "a.npz", **changed)
    spec = NpzDataset(path="a.npz")
    assert examine(spec, tmp_path).class_names == ("cat", "cow", "dog")
    assert prepare(spec, "test", tmp_path).labels_N.tolist() == [2, 0, 1]
    make_npz(tmp_path / "a.npz", **changed | {"train_labels": np.array([0, 2, 4, 4, 2, 0])})
    with pytest.raises(InvalidDataset, match=r"holds the label 4; labels are 0..2"):
        examine(spec, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((6, 4, 5), np.float32)}, r"Of values from 0 to 1 save numpy.round\(images \* 255\)"),
        ({"train_images": np.zeros((6, 4, 5), np.int64)}, r"Of values from 0 to 255 save images.astype\('uint8'\)"),
        ({"train_images": np.zeros((6, 60), np.uint8)}, r"make pictures of the rows by numpy.reshape"),
        ({"train_labels": np.eye(6, 3, dtype=int)}, r"Of one-hot rows save labels.argmax\(axis=1\)"),
        ({"train_labels": np.zeros(6)}, r"Save labels.astype\('int64'\)"),
        ({"test_labels": np.array([0, 1, 5])}, r"test_labels holds the label 5; labels are 0..2"),
        (
            {"train_labels": np.array([1, 2, 4, 4, 2, 1]), "test_labels": np.array([1, 2, 3])},
            r"test_labels holds the label 3, which no training picture has: those are 1, 2, 4",
        ),
        ({"x_train": np.zeros((6, 4, 5), np.uint8)}, r"holds train_images and x_train, which both mean the train"),
    ],
)
def test_npz_that_cannot_be_taken_says_what_to_save(
    tmp_path: Path, changed: dict[str, np.ndarray], message: str
) -> None:
    make_npz(tmp_path / "a.npz", **changed)
    with pytest.raises(InvalidDataset, match=message):
        examine(NpzDataset(path="a.npz"), tmp_path)
