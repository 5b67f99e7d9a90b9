"""WebDataset shards: samples are grouped, indexed and read at random; what is damaged or unclear is refused."""

import gzip
import json
import pickle
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import dataset_forms
from tests.support.dataset_forms import PICTURES, add, encoded
from tests.workers.data.test_prepared import prepare
from workers.data.kinds.webdataset import WebDataset
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset

JPEG = [encoded(picture, "JPEG") for picture in PICTURES["train"]]


def write(path: Path, members: Mapping[str, bytes | str], form: int = tarfile.PAX_FORMAT) -> WebDataset:
    """A shard of these members, as tar or the package webdataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            add(tar, name, content if isinstance(content, bytes) else content.encode())
    return WebDataset(path=path.name)


def samples(labels: list[object], extension: str = "cls") -> dict[str, bytes | str]:
    """Members ``N.jpg`` and ``N.EXTENSION`` of pictures with these labels."""
    made: dict[str, bytes | str] = {}
    for number, label in enumerate(labels):
        made[f"{number:03}.jpg"] = JPEG[number % len(JPEG)]
        made[f"{number:03}.{extension}"] = label if isinstance(label, str) else json.dumps(label)
    return made


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_is_decoded_as_pil_does_in_the_order_of_the_shard(tmp_path: Path, form: int) -> None:
    long = "a folder/" * 20
    members = {f"{long}{11 - n:03}.JPG": data for n, data in enumerate(JPEG)}
    labelled = {key: value for name, data in members.items() for key, value in ((name, data), (f"{name[:-3]}cls", "1"))}
    labelled[f"{long}000.cls"] = "0\n"
    spec = write(tmp_path / "a.tar", labelled, form)
    train = prepare(spec, "train", tmp_path)
    assert train.labels_N.tolist() == [1] * 11 + [0]
    for picture, path in zip(train.take(slice(None)), JPEG, strict=True):
        (tmp_path / "one.jpg").write_bytes(path)
        with Image.open(tmp_path / "one.jpg") as image:
            np.testing.assert_array_equal(picture, np.asarray(image))


def test_webdataset_shards_are_files_of_any_name_and_links(tmp_path: Path) -> None:
    write(tmp_path / "set/TRAIN.TAR", samples([1, 0, 1]))
    (tmp_path / "set/classes.txt").write_text("cat\ndog\n")
    assert prepare(WebDataset(path="set"), "train", tmp_path).class_names == ("cat", "dog")
    write(tmp_path / "blobs/0a1b2c", samples([0, 1]))
    (tmp_path / "a.tar").symlink_to("blobs/0a1b2c")
    assert prepare(WebDataset(path="a.tar"), "train", tmp_path).labels_N.tolist() == [0, 1]


def test_webdataset_rows_are_read_at_random_by_id(tmp_path: Path) -> None:
    spec = WebDataset.model_validate(dataset_forms.shards(tmp_path))
    rows = spec.encoded(examine(spec, tmp_path), "train")
    assert rows.ids[5:7] == ["train-000000.tar/00000005", "train-000001.tar/00000006"]
    for row in (11, 0, 6, 5):
        assert rows.read(row) == encoded(PICTURES["train"][row])


def test_webdataset_pictures_that_stay_in_their_shards_are_the_decoded_ones(tmp_path: Path) -> None:
    described = dataset_forms.shards(tmp_path)
    decoded = prepare(WebDataset.model_validate(described), "train", tmp_path)
    shutil.rmtree(tmp_path / "work")
    kept = prepare(WebDataset.model_validate(described | {"storage": "files"}), "train", tmp_path)
    assert not (kept.path / "images.npy").exists()
    assert kept.fingerprint == decoded.fingerprint
    rows = np.array([11, 0, 6, 5, 0])
    for opened in (kept, pickle.loads(pickle.dumps(kept))):
        np.testing.assert_array_equal(opened.take(rows), PICTURES["train"][rows])
    with (tmp_path / "shards/train-000001.tar").open("ab") as shard:
        shard.write(bytes(512))
    np.testing.assert_array_equal(kept.take(np.array([5])), PICTURES["train"][[5]])
    with pytest.raises(InvalidDataset, match=r"^train-000001.tar has changed since the dataset was prepared"):
        kept.take(np.array([6]))


def test_webdataset_bad_pictures_are_left_out_of_the_list_of_those_that_stay(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", samples([0, 1, 1, 0]) | {"001.jpg": b"text"})
    spec = WebDataset(path="a.tar", storage="files", on_bad_picture="skip")
    kept = prepare(spec, "train", tmp_path)
    np.testing.assert_array_equal(kept.labels_N, [0, 1, 0])
    found = kept.take(slice(None))
    shutil.rmtree(tmp_path / "work")
    decoded = prepare(spec.model_copy(update={"storage": "decoded"}), "train", tmp_path)
    np.testing.assert_array_equal(found, decoded.take(slice(None)))


@pytest.mark.parametrize(
    ("members", "options", "names"),
    [
        (samples([3, 1, 3, 1]), {}, ("1", "3")),
        (samples(["dog", "ape", "dog"]), {}, ("ape", "dog")),
        (samples([{"label": 2}, {"label": 0}, {"label": 1}], "json"), {}, ("0", "1", "2")),
        (samples([{"cls": "b"}, {"cls": "a"}], "json"), {}, ("a", "b")),
        (
            samples([{"synset": "n2", "label": 1}, {"synset": "n1", "label": 1}], "json"),
            {"label": "synset"},
            ("n1", "n2"),
        ),
        (samples(["b", "a"], "word.txt"), {"label": "word.txt"}, ("a", "b")),
    ],
)
def test_webdataset_labels_are_found_or_asked_for(
    tmp_path: Path, members: dict[str, bytes | str], options: dict[str, str], names: tuple[str, ...]
) -> None:
    write(tmp_path / "a.tar", members)
    source = examine(WebDataset.model_validate({"path": "a.tar", **options}), tmp_path)
    assert source.class_names == names
    assert bool(source.notes) == (names == ("1", "3"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "cat\ndog\n"),
        ("classnames.txt", "cat\r\ndog"),
        ("classes.json", '["cat", "dog"]'),
        ("classes.json", '{"1": "dog", "0": "cat"}'),
        ("classes.json", '{"dog": 1, "cat": 0}'),
    ],
)
def test_webdataset_class_names_lie_beside_the_shards(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path / "set/train.tar", samples([1, 0, 1]))
    (tmp_path / "set" / name).write_text(text)
    spec = WebDataset(path="set")
    source = examine(spec, tmp_path)
    assert source.class_names == ("cat", "dog")
    assert prepare(spec, "train", tmp_path).labels_N.tolist() == [1, 0, 1]
    (tmp_path / "set" / name).write_text('{"dog": 1, "cat": 3}' if text.startswith(("{", "[")) else "cat\n")
    with pytest.raises(InvalidDataset, match=r"do not name the classes 0 to 1|\['cat'\]; at least two"):
        examine(spec, tmp_path)
    assert source.key() != examine(write(tmp_path / "b.tar", samples([1, 0])), tmp_path).key()


def test_webdataset_samples_without_a_label_are_pictures_without_one(tmp_path: Path) -> None:
    members = samples([1, 0, -1, 1, 0])
    del members["003.cls"]
    write(tmp_path / "a.tar", members)
    spec = WebDataset(path="a.tar")
    source = examine(spec, tmp_path)
    assert (source.class_names, source.samples, source.labelled) == (("0", "1"), {"train": 5}, {"train": 3})
    assert source.class_counts == {"train": (2, 1)}
    assert source.notes[0].startswith("2 of 5 samples of train have no label, in a.tar '002' has jpg, cls; a label is")
    assert prepare(spec, "train", tmp_path).labels_N.tolist() == [1, 0, -1, -1, 0]


def test_webdataset_of_pictures_alone_has_the_classes_of_the_test_split_or_those_named(tmp_path: Path) -> None:
    write(tmp_path / "set/train.tar", {f"{row}.jpg": data for row, data in enumerate(JPEG)})
    spec = WebDataset(path="set")
    source = examine(spec, tmp_path)
    assert (source.classes, source.labelled, source.notes) == (0, {"train": 0}, ())
    assert examine(spec.model_copy(update={"class_names": ("a", "b")}), tmp_path).class_names == ("a", "b")
    write(tmp_path / "set/test.tar", samples(["dog", "cat"]))
    assert examine(spec, tmp_path).class_names == ("cat", "dog")
    assert prepare(spec, "train", tmp_path).labels_N.tolist() == [-1] * len(JPEG)
    assert prepare(spec, "test", tmp_path).labels_N.tolist() == [1, 0]


def test_webdataset_of_class_folders_without_labels_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {f"train/{'cat' if row % 2 else 'dog'}/{row}.jpg": data for row, data in enumerate(JPEG)})
    [note] = examine(WebDataset(path="a.tar"), tmp_path).notes
    assert note.startswith(
        "no sample of train has a label, and they lie in the folders train/cat, train/dog of the tar"
    )


def test_webdataset_labels_of_some_samples_are_integers_from_0_or_of_the_names_beside(tmp_path: Path) -> None:
    write(tmp_path / "set/train.tar", samples([2, -1, 1]))
    source = examine(WebDataset(path="set"), tmp_path)
    assert source.class_names == ("0", "1", "2")
    assert source.notes[0].startswith("class 0 has no labelled picture; labels are taken as 0-based")
    (tmp_path / "set/classes.txt").write_text("ape\ncat\ndog\n")
    assert examine(WebDataset(path="set"), tmp_path).class_names == ("ape", "cat", "dog")
    write(tmp_path / "set/train.tar", samples([3, -1, 1]))
    with pytest.raises(InvalidDataset, match=r"holds the label 3; labels are 0\.\.2"):
        examine(WebDataset(path="set"), tmp_path)


def test_webdataset_leaves_out_links_folders_and_what_is_no_sample(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    members = samples([0, 1])
    path = tmp_path / "root" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, content in {**members, "README.md": "hello", "../../up.jpg": JPEG[2], "../../up.cls": "1"}.items():
            add(tar, name, content if isinstance(content, bytes) else content.encode())
        for kind, name in ((tarfile.SYMTYPE, "z.jpg"), (tarfile.LNKTYPE, "z.cls"), (tarfile.DIRTYPE, "folder.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    spec = WebDataset(path="a.tar")
    source = examine(spec, tmp_path / "root")
    assert source.samples == {"train": 3}
    assert source.notes == ("3 members of the tar files belong to no sample, or are links, and were left out",)
    assert prepare(spec, "train", tmp_path / "root").samples == 3
    assert not (tmp_path / "up.jpg").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": JPEG[0], "a.png": JPEG[0], "a.cls": "1"}, "several pictures, jpg, png: set 'image'"),
        ({"a.jpg": JPEG[0], "b.jpg": JPEG[1], "a.cls": "1"}, r"sample 'a' has no picture .*must follow each other"),
        ({"a.cls": "1", "b.jpg": JPEG[0]}, r"sample 'a' has no picture \(.bmp"),
        (samples([{"label": 0.5}], "json"), r"has the label 0.5 in its .json, which is no"),
        (samples(["{"], "json"), r"the .json of the sample '000' cannot be read"),
        (samples(["1", "1"]), "at least two"),
        (samples(["0", "1", "-2"]), "holds the label -2"),
        ({"README.md": "hello"}, "shards of train have no sample"),
        ({"a.jpg": JPEG[0], "a.JPG": JPEG[0], "a.cls": "1"}, "two members .jpg"),
    ],
)
def test_webdataset_that_is_unclear_says_what_to_do(
    tmp_path: Path, members: dict[str, bytes | str], message: str
) -> None:
    spec = write(tmp_path / "a.tar", members)
    with pytest.raises(InvalidDataset, match=message):
        examine(spec, tmp_path)


def test_webdataset_labels_under_another_name_are_said_or_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", samples([{"text": "a cat", "kind": "cat"}, {"text": "a dog", "kind": "dog"}], "json"))
    notes = examine(WebDataset(path="a.tar"), tmp_path).notes
    assert notes[0].startswith("2 of 2 samples of train have no label, in a.tar '000' has jpg, json with the keys text")
    assert examine(WebDataset(path="a.tar", label="kind"), tmp_path).class_names == ("cat", "dog")
    with pytest.raises(InvalidDataset, match="no sample has a label 'knid'; '000' has jpg, json with the keys text, k"):
        examine(WebDataset(path="a.tar", label="knid"), tmp_path)


def test_webdataset_shards_that_are_damaged_or_packed_are_refused(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.tar", samples([0, 1, 0, 1]))
    whole = (tmp_path / "a.tar").read_bytes()
    blocks = len(whole.rstrip(b"\0")) // 512 + 1
    damaged = bytearray(whole)
    # The checksum of the header of the third member.
    third = whole.index(b"001.jpg")
    damaged[third + 148 : third + 156] = b"9" * 8
    for content, message in (
        (b"", "cannot be read as a tar file"),
        (b"no tar file" * 100, "cannot be read as a tar file"),
        (whole[: third + 100], r"no end of a tar file at byte \d+"),
        (whole[: blocks * 512], r"no end of a tar file at byte \d+"),
        (whole[: third + 600], "unexpected end of data|no end of a tar file"),
        (bytes(damaged), f"no end of a tar file at byte {third}"),
        (gzip.compress(whole), "is packed by gzip"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(InvalidDataset, match=rf"^a.tar .*({message})"):
            examine(spec, tmp_path)
    (tmp_path / "a.tar").write_bytes(whole)
    assert examine(spec, tmp_path).samples == {"train": 4}


def test_webdataset_pictures_that_are_damaged_are_named(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.tar", samples([0, 1, 1, 0]) | {"001.jpg": b"text", "003.jpg": JPEG[3][:200]})
    with pytest.raises(InvalidDataset, match=r"2 of 4 pictures cannot be used: a.tar/001 .*; a.tar/003 "):
        prepare(spec, "train", tmp_path)
    assert prepare(spec.model_copy(update={"on_bad_picture": "skip"}), "train", tmp_path).samples == 2
