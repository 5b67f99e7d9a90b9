"""Manifests: CSV and JSONL files that list pictures, their labels and splits; everything wrong with rows named."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.workers.data.test_discovery import make_folder
from tests.workers.data.test_prepared import prepare
from workers.data.files import manifest_rows
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.manifest import ManifestDataset
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset

LIST = ManifestDataset(path="pets/list.csv")


def rows(root: Path) -> list[tuple[str, str, str]]:
    """Path, label and split of each picture of ``make_folder``, in the order of the folder kind."""
    folder = root / "pets"
    return [
        (path.relative_to(folder).as_posix(), path.parent.name, path.parts[-3])
        for split in ("train", "test")
        for path in sorted((folder / split).rglob("*.png"))
    ]


def write_csv(root: Path, *lines: str, header: str = "path,label,split") -> None:
    (root / "pets/list.csv").write_text("\n".join((header, *lines)) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_folder(tmp_path)
    write_csv(tmp_path, *(",".join(row) for row in rows(tmp_path)))
    return tmp_path


def test_manifest_of_a_folder_is_the_same_dataset(root: Path) -> None:
    for split in ("train", "test"):
        listed = prepare(LIST, split, root)
        assert listed.fingerprint == prepare(FolderDataset(path="pets"), split, root).fingerprint
        assert listed.sample_ids is not None
        assert listed.sample_ids[3] == f"{split}/dog/1.png"


def test_manifest_in_json_lines_may_name_columns_folder_and_integers(root: Path) -> None:
    lines = [json.dumps({"file": path, "y": ["cat", "dog"].index(name)}) for path, name, _ in rows(root)[::-1]]
    (root / "list.jsonl").write_text("\ufeff" + "\n\n".join(lines))
    spec = ManifestDataset(path="list.jsonl", root="pets", path_column="file", label_column="y", storage="files")
    train = prepare(spec, "train", root)
    assert (train.class_names, train.labels_N.tolist()) == (("0", "1"), [1, 1, 0, 0, 1, 1, 0, 0])
    assert train.sample_ids is not None
    assert train.sample_ids[0] == "test/dog/1.png"
    np.testing.assert_array_equal(train.take(slice(0, 1))[0, 0, 0], (1, 1, 0))
    assert "no test split" in examine(spec, root).advice[0]


def test_manifest_labels_with_gaps_are_mapped_and_said(root: Path) -> None:
    write_csv(root, *(f"{path},{10 if name == 'cat' else 9},{split}" for path, name, split in rows(root)))
    source = examine(LIST, root)
    assert (source.class_names, source.class_counts["train"]) == (("9", "10"), (2, 2))
    assert list(source.labels["train"]) == [1, 1, 0, 0]
    assert source.notes[0].startswith("the labels 9 to 10 have gaps or do not begin at 0")


def test_manifest_names_all_that_is_wrong_with_its_rows_at_once(root: Path) -> None:
    good = [",".join(row) for row in rows(root)]
    missing = [f"train/cat/{number}.jpg,cat,train" for number in range(14)]
    other = ["train/cat/0.png,cat,train", "/etc/hosts,cat,train", "../x,cat,train"]
    write_csv(root, *good, *missing, *other, "./test/cat/1.png,cat,holdout")
    with pytest.raises(InvalidDataset) as caught:
        examine(LIST, root)
    message = str(caught.value)
    assert "14 files are not there (below pets): 'train/cat/0.jpg' in line 10" in message
    assert "'train/cat/9.jpg' in line 19 and 4 more" in message
    assert "1 files are listed twice: 'train/cat/0.png' in line 24" in message
    assert "2 paths are not allowed (those below pets, without '..', are): '/etc/hosts' in line 25, '../x'" in message
    assert "1 rows are of an unknown split (known are train, training, validation" in message
    assert str(root) not in message


def test_manifest_refuses_a_link_out_of_the_data_root(tmp_path: Path, root: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}.png"
    outside.write_bytes(b"")
    (root / "pets/train/cat/0.png").unlink()
    (root / "pets/train/cat/0.png").symlink_to(outside)
    with pytest.raises(InvalidDataset, match=r"train/cat/0\.png is a symbolic link that leads out of the data root"):
        examine(LIST, root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "lacks the column 'path'; it has 'file', 'label': give path_column and label_column"),
        ("path,label\n", "lists no picture of the split train; it has no rows"),
        ("path,label,split\ntest/cat/0.png,cat,test\n", "lists no picture of the split train; it has test"),
        ("path,label\ntrain/cat/0.png,cat\n", r"has the classes \['cat'\]; at least two"),
        ("path,label\n" + "a" * 70_000, "line 2 has more than 65536 characters"),
        ("path,label\n\xff", "is not UTF-8"),
        ("path,label\ntrain/cat/0.png," + "a" * 300 + "\ntrain/cat/1.png,b\n", "has 300 characters, at most 255"),
    ],
)
def test_manifest_that_cannot_be_read_is_refused(root: Path, text: str, message: str) -> None:
    (root / "pets/list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidDataset, match=message):
        examine(LIST, root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[1]"], r"line 1 is \[1\], not a JSON object"),
        (["{"], "line 1 is no JSON"),
        (["[" * 60_000], "line 1 is no JSON"),
        (
            ['{"path": 1, "label": 1}', '{"path": "a", "label": true}'],
            "1 paths are not allowed .*: 1 in line 1; 1 labels are neither a name nor",
        ),
        (
            ['{"path": "train/cat/0.png", "label": 0}', '{"path": "train/cat/1.png", "label": 0, "split": "test"}'],
            "1 rows are of an unknown split .*: None in line 2",
        ),
    ],
)
def test_manifest_in_json_lines_that_cannot_be_read_is_refused(root: Path, lines: list[str], message: str) -> None:
    (root / "pets/list.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidDataset, match=message):
        examine(ManifestDataset(path="pets/list.jsonl"), root)


def test_manifest_is_bounded_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_rows, "FILE_MAX_BYTES", 10)
    with pytest.raises(InvalidDataset, match=r"list\.csv has \d+ bytes, a manifest may have at most 10"):
        examine(LIST, root)


def test_manifest_labels_of_another_split_need_training_pictures(root: Path) -> None:
    write_csv(root, *(",".join(row) for row in rows(root)[:-1]), "test/dog/1.png,bird,test")
    with pytest.raises(InvalidDataset, match=r"1 labels have no training picture: 'bird'"):
        examine(LIST, root)


def test_source_key_of_a_manifest_changes_with_its_labels(root: Path) -> None:
    before = examine(LIST, root).key()
    write_csv(root, *(",".join(row).replace("cat,", "cats,") for row in rows(root)))
    assert examine(LIST, root).key() != before


@pytest.mark.parametrize("none", ["", "-1", "  "])
def test_manifest_row_without_a_label_is_a_picture_without_one(root: Path, none: str) -> None:
    listed = rows(root)
    write_csv(root, *(f"{path},{name if place else none},{split}" for place, (path, name, split) in enumerate(listed)))
    source = examine(LIST, root)
    assert (source.class_names, source.labelled) == (("cat", "dog"), {"train": 3})
    assert source.class_counts == {"train": (1, 2), "test": (2, 2)}
    assert prepare(LIST, "train", root).labels_N.tolist() == [-1, 0, 1, 1]


def test_manifest_integers_beside_rows_without_a_label_are_0_based_as_pandas_writes_them(root: Path) -> None:
    labels = ["", "2.0", "1.0", "10.0"]
    lines = [f"{path},{label}" for (path, *_), label in zip(rows(root), labels, strict=False)]
    write_csv(root, *lines, header="path,label")
    source = examine(LIST, root)
    assert source.class_names == tuple(map(str, range(11)))
    assert list(source.labels["train"]) == [-1, 2, 1, 10]
    assert source.notes[0].startswith("class 0 has no labelled picture; labels are taken as 0-based")


def test_manifest_keys_may_be_missing_in_json_lines(root: Path) -> None:
    listed = [{"path": path, "label": float(name == "dog")} for path, name, _ in rows(root)]
    del listed[0]["label"]
    listed[1]["label"] = float("nan")
    (root / "pets/list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    source = examine(ManifestDataset(path="pets/list.jsonl"), root)
    assert (source.class_names, list(source.labels["train"])) == (("0", "1"), [-1, -1, 1, 1, 0, 0, 1, 1])


def test_manifest_of_paths_alone_has_no_labels_and_one_with_other_columns_is_asked_for_them(root: Path) -> None:
    paths = [path for path, *_ in rows(root)]
    write_csv(root, *paths, header="path")
    source = examine(LIST, root)
    assert (source.classes, source.labelled) == (0, {"train": 0})
    assert examine(LIST.model_copy(update={"class_names": ("a", "b")}), root).class_names == ("a", "b")
    write_csv(root, *(f"{path},cat" for path in paths), header="path,species")
    with pytest.raises(InvalidDataset, match="lacks the column 'label'; it has 'path', 'species': give path_column an"):
        examine(LIST, root)
    write_csv(root, *paths, header="path")
    with pytest.raises(InvalidDataset, match="lacks the column 'species'"):
        examine(LIST.model_copy(update={"label_column": "species"}), root)


def test_manifest_may_have_semicolons_and_absolute_paths_below_its_folder(root: Path) -> None:
    """As spreadsheets and ``glob`` write them; another name of the folder is another folder."""
    before = examine(LIST, root)
    absolute = [(f"{root}/pets/{path}", name, split) for path, name, split in rows(root)]
    write_csv(root, *(";".join(row) for row in absolute), header="path;label;split")
    source = examine(LIST, root)
    assert (source.files, source.labels) == (before.files, before.labels)
    write_csv(root, f"{root}/petshop/a.png,cat,train", f"{root}/pets/../pets/train/cat/0.png,cat,train")
    with pytest.raises(InvalidDataset, match=r"2 paths are not allowed \(those below pets, without '..', are\)"):
        examine(LIST, root)


@pytest.mark.parametrize("name", ["list.txt", "list.json"])
def test_manifest_of_another_form_says_how_to_save_it(root: Path, name: str) -> None:
    (root / "pets/list.csv").rename(root / "pets" / name)
    with pytest.raises(InvalidDataset, match=r"save the list as CSV with a header \(path,label\), or .*lines=True"):
        examine(ManifestDataset(path=f"pets/{name}"), root)


def test_manifest_class_names_are_those_of_the_client_in_their_order(root: Path) -> None:
    named = LIST.model_copy(update={"class_names": ("dog", "cat")})
    assert list(examine(named, root).labels["train"]) == [1, 1, 0, 0]
    with pytest.raises(InvalidDataset, match=r"holds the label 'dog', which is none of the classes"):
        examine(LIST.model_copy(update={"class_names": ("cat", "cow")}), root)
    write_csv(root, *(f"{path},{int(name == 'dog')},{split}" for path, name, split in rows(root)))
    source = examine(named, root)
    assert (source.class_names, list(source.labels["train"])) == (("dog", "cat"), [0, 0, 1, 1])
    with pytest.raises(InvalidDataset, match=r"class 2 \('cow'\) has no training picture"):
        examine(LIST.model_copy(update={"class_names": ("dog", "cat", "cow")}), root)


@pytest.mark.parametrize("path", ["\ud800.png", "\ud800/a.png"])
def test_manifest_path_that_is_no_text_is_a_file_that_is_not_there(root: Path, path: str) -> None:
    (root / "list.jsonl").write_text(json.dumps({"path": path, "label": "cat"}))
    with pytest.raises(InvalidDataset, match=r"1 files are not there .*\\ud800"):
        examine(ManifestDataset(path="list.jsonl"), root)
