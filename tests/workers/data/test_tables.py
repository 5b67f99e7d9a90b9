"""Parquet files and saved Arrow datasets: columns, splits and class names are found or asked for, damage is named."""

import json
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import dataset_forms
from tests.support.dataset_forms import LABELS, PICTURES, encoded
from tests.workers.data.test_prepared import prepare
from workers.data.kinds.parquet import ParquetDataset
from workers.data.preparation.discovery import examine
from workers.data.tabular import image_column, table_columns
from workers.data.tabular.tables import open_arrow
from workers.errors import InvalidDataset

BYTES = [encoded(picture, "JPEG") for picture in PICTURES["train"]]
LABEL = LABELS["train"]


def write(path: Path, **columns: object) -> ParquetDataset:
    """A parquet file of these columns, as pandas or pyarrow write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return ParquetDataset(kind="parquet", path=path.name)


def test_parquet_of_plain_bytes_and_names_is_decoded_as_pil_does(tmp_path: Path) -> None:
    words = np.array(["cow", "ape", "dog", "cat"])[LABEL]
    write(tmp_path / "a.parquet", data=BYTES, animal=pa.array(words).dictionary_encode(), weight=[0.5] * 12)
    spec = ParquetDataset(kind="parquet", path="a.parquet", label="animal")
    source = examine(spec, tmp_path)
    assert (source.samples, source.class_names) == ({"train": 12}, ("ape", "cat", "cow", "dog"))
    assert source.class_counts == {"train": (3, 3, 3, 3)}
    train = prepare(spec, "train", tmp_path)
    assert [train.class_names[label] for label in train.labels_N] == list(words)
    for picture, data in zip(train.take(slice(None)), BYTES, strict=True):
        with Image.open(pa.BufferReader(data)) as image:
            np.testing.assert_array_equal(picture, np.asarray(image))


def test_parquet_integers_are_numbered_and_it_is_said(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", image=BYTES, label=LABEL * 10 + 1)
    source = examine(spec, tmp_path)
    assert source.class_names == ("1", "11", "21", "31")
    assert "11 is class 1" in source.notes[0]
    np.testing.assert_array_equal(prepare(spec, "train", tmp_path).labels_N, LABEL)


@pytest.mark.parametrize("none", [-1, None])
def test_parquet_rows_without_a_label_are_of_no_class(tmp_path: Path, none: int | None) -> None:
    labels = [none, *LABEL[1:].tolist()]
    source = examine(write(tmp_path / "a.parquet", image=BYTES, label=labels), tmp_path)
    assert (source.class_names, source.labelled) == (("0", "1", "2", "3"), {"train": 11})
    found = prepare(ParquetDataset(kind="parquet", path="a.parquet"), "train", tmp_path)
    assert found.labels_N.tolist() == [-1, *LABEL[1:].tolist()]


def test_parquet_of_names_has_none_where_they_are_null(tmp_path: Path) -> None:
    words = [None, *np.array(["cow", "ape", "dog", "cat"])[LABEL[1:]]]
    spec = write(tmp_path / "a.parquet", image=BYTES, label=words)
    assert examine(spec, tmp_path).labelled == {"train": 11}
    found = prepare(spec, "train", tmp_path)
    assert [None if label < 0 else found.class_names[label] for label in found.labels_N] == words


def test_parquet_without_a_column_of_labels_has_the_classes_of_the_test_split_or_those_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", image=BYTES)
    spec = ParquetDataset(kind="parquet", path="set")
    source = examine(spec, tmp_path)
    assert (source.classes, source.labelled) == (0, {"train": 0})
    named = spec.model_copy(update={"class_names": ("a", "b", "c", "d")})
    assert examine(named, tmp_path).class_names == ("a", "b", "c", "d")
    write(tmp_path / "set" / "test.parquet", image=BYTES, label=LABEL)
    source = examine(spec, tmp_path)
    assert (source.class_names, source.labelled) == (("0", "1", "2", "3"), {"train": 0})
    assert prepare(spec, "train", tmp_path).labels_N.tolist() == [-1] * 12
    assert prepare(spec, "test", tmp_path).labels_N.tolist() == LABEL.tolist()


def test_parquet_column_that_is_not_called_label_is_none_unless_it_is_named(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(12)]
    spec = write(tmp_path / "a.parquet", image=BYTES, file_name=names)
    source = examine(spec, tmp_path)
    assert (source.classes, source.labelled) == (0, {"train": 0})
    assert source.notes[0].startswith("a.parquet: no column is taken for labels, but there is file_name (string): one")
    write(tmp_path / "a.parquet", image=BYTES, file_name=names, labels=LABEL)
    assert examine(spec, tmp_path).labelled == {}


def test_parquet_split_without_the_column_that_is_named_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", image=BYTES, fine=LABEL)
    write(tmp_path / "set" / "test.parquet", image=BYTES)
    source = examine(ParquetDataset(kind="parquet", path="set", label="fine"), tmp_path)
    assert (source.classes, source.labelled) == (4, {"test": 0})


def test_parquet_labels_of_some_rows_that_lack_0_are_said_to_be_taken_as_0_based(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", image=BYTES, label=[-1, *(LABEL[1:] + 1)])
    source = examine(spec, tmp_path)
    assert source.class_names == ("0", "1", "2", "3", "4")
    assert source.notes[0].startswith("class 0 has no labelled picture; labels are taken as 0-based: if they count fro")
    write(tmp_path / "a.parquet", image=BYTES, label=[-1, *LABEL[1:]])
    assert examine(spec, tmp_path).notes == ()


def test_parquet_labels_are_bounded_before_a_dictionary_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 1000), pa.array(["a" * 100_000, "b" * 100_000]))
    spec = write(tmp_path / "a.parquet", image=BYTES[:1] * 2000, label=texts.dictionary_decode())
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    with pytest.raises(InvalidDataset, match=r"column 'label' holds a label of 100000 bytes, .* at most 255 char"):
        examine(spec, tmp_path)
    monkeypatch.setattr(table_columns, "_LABELS_MAX_BYTES", 1000)
    with pytest.raises(InvalidDataset, match=r"bytes of labels, at most 1000 are read"):
        examine(spec, tmp_path)


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files_that_are_packed_are_refused(tmp_path: Path, form: str) -> None:
    writer = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[form]
    spec = ParquetDataset.model_validate(dataset_forms.saved(tmp_path))
    table: Any = dataset_forms.hub_table("train")
    for packed in (None, "zstd", "lz4"):
        with writer(
            str(tmp_path / "saved/train/data-00000-of-00001.arrow"),
            table.schema,
            options=pa.ipc.IpcWriteOptions(compression=packed),
        ) as file:
            file.write_table(table, max_chunksize=5)
        if packed is None:
            assert examine(spec, tmp_path).samples == {"train": 12, "test": 8}
            continue
        with pytest.raises(InvalidDataset, match=r"arrow is a packed Arrow file; .* write it without compression"):
            examine(spec, tmp_path)


def test_parquet_rows_are_read_in_any_order_with_few_groups_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ParquetDataset.model_validate(dataset_forms.hub(tmp_path))
    monkeypatch.setattr(image_column, "_HELD_BYTES", 0)
    rows = spec.encoded(examine(spec, tmp_path), "train")
    assert rows.ids[5:7] == ["data/train-00000-of-00002.parquet:5", "data/train-00001-of-00002.parquet:0"]
    assert rows.place(7) == f"{tmp_path}/hub/data/train-00001-of-00002.parquet, row 1,"
    for row in (11, 0, 5, 6, 4):
        assert rows.read(row) == encoded(PICTURES["train"][row])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": BYTES, "mask": BYTES, "label": LABEL}, {}, None),
        ({"photo": BYTES, "mask": BYTES, "label": LABEL}, {}, "several columns .* photo, mask: set 'image' to one of"),
        ({"photo": BYTES, "mask": BYTES, "label": LABEL}, {"image": "photo"}, None),
        (
            {"image": BYTES, "fine": LABEL, "coarse": LABEL},
            {},
            "several columns .* fine, coarse: set 'label' to one of",
        ),
        ({"image": BYTES, "fine": LABEL, "coarse": LABEL}, {"label": "fine"}, None),
        ({"image": BYTES, "score": LABEL / 2}, {"label": "score"}, r"no column 'score' of labels .*score \(double\)"),
        ({"pixels": LABEL, "label": LABEL}, {}, r"no column of pictures"),
        ({"image": BYTES, "label": LABEL}, {"label": "lable"}, "has no column 'lable' of labels"),
        ({"image": BYTES, "label": LABEL - 2}, {}, "holds the label -2; labels are 0..1"),
        ({"image": BYTES, "label": ["a"] * 12}, {}, "at least two"),
    ],
)
def test_parquet_columns_are_found_or_asked_for(
    tmp_path: Path, columns: dict[str, object], options: dict[str, str], message: str | None
) -> None:
    write(tmp_path / "a.parquet", **columns)
    spec = ParquetDataset.model_validate({"kind": "parquet", "path": "a.parquet", **options})
    if message is None:
        assert examine(spec, tmp_path).classes == 4
        return
    with pytest.raises(InvalidDataset, match=message):
        examine(spec, tmp_path)


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        (("train-00000-of-00001.parquet", "validation.parquet", "test.parquet"), {"train", "validation", "test"}),
        (
            ("default/train/0000.parquet", "default/train/0001.parquet", "default/val/0000.parquet"),
            {"train", "validation"},
        ),
        (("part-0.parquet", "part-1.parquet"), {"train"}),
        (("train-00000-of-00002.parquet",), r"lacks train-00001-of-00002 \(1 of 2 files are missing\)"),
        (("a/train.parquet", "b/train.parquet"), "files of one split lie in several folders, a, b"),
        (("train.parquet", "more.parquet"), "more.parquet have none of train, validation and test"),
        (("train-test.parquet",), "has two splits in its name, train and test"),
        (("test.parquet",), "has no file of the training split"),
        ((), r"holds no file \*.parquet"),
    ],
)
def test_parquet_splits_are_those_of_the_names(tmp_path: Path, names: tuple[str, ...], samples: set[str] | str) -> None:
    (tmp_path / "set").mkdir()
    for name in names:
        write(tmp_path / "set" / name, image=BYTES, label=LABEL)
    spec = ParquetDataset(kind="parquet", path="set")
    if isinstance(samples, str):
        with pytest.raises(InvalidDataset, match=samples):
            examine(spec, tmp_path)
    else:
        assert set(examine(spec, tmp_path).samples) == samples


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("set/part-{0..2}.parquet", 3),
        ("set/part-{0,2}.parquet", 2),
        ("set/*-1.parquet", 1),
        ("set/part-{0..3}.parquet", "no file 'part-3.parquet'"),
        ("set/part-{3..1}.parquet", "no range of 1 to 100000"),
        ("set/{0..999}{0..999}.parquet", "1000000 files, at most 100000"),
        ("set/" + "{0..99999}" * 100 + ".parquet", "more than 10000000000 files, at most 100000"),
        ("set/part-{0,0,1}.parquet", 2),
        ("set/" + "{*,*}" * 13, 3),
        ("set/" + "{*,?}" * 13, "too many patterns with wildcards"),
        ("../set/*.parquet", "not allowed"),
    ],
)
def test_parquet_path_may_be_a_pattern(tmp_path: Path, path: str, found: int | str) -> None:
    for number in range(3):
        write(tmp_path / "root" / "set" / f"part-{number}.parquet", image=BYTES, label=LABEL)
    spec = ParquetDataset(kind="parquet", path=path)
    if isinstance(found, str):
        with pytest.raises(InvalidDataset, match=found):
            examine(spec, tmp_path / "root")
    else:
        assert examine(spec, tmp_path / "root").samples == {"train": found * 12}


def test_parquet_files_must_agree_on_names_and_columns(tmp_path: Path) -> None:
    spec = ParquetDataset.model_validate(dataset_forms.hub(tmp_path))
    path = tmp_path / "hub/data/test-00000-of-00001.parquet"
    table: Any = dataset_forms.hub_table("test")
    noted = table.schema.metadata[b"huggingface"].replace(b'"0", "1"', b'"1", "0"')
    pq.write_table(table.replace_schema_metadata({b"huggingface": noted}), path)
    with pytest.raises(InvalidDataset, match=r"test-00000-of-00001.parquet notes other names of classes than"):
        examine(spec, tmp_path)
    unknown = pa.array([-1, *LABELS["test"][1:]], pa.int64())
    pq.write_table(table.set_column(1, "label", unknown), path)
    assert examine(spec, tmp_path).labelled == {"test": 7}
    pq.write_table(table.rename_columns(["img", "label"]), path)
    with pytest.raises(InvalidDataset, match=r"test-00000-of-00001.parquet has no column 'image' of pictures"):
        examine(spec, tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_that_are_damaged_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    given = (dataset_forms.hub if kind == "parquet" else dataset_forms.saved)(tmp_path)
    spec = ParquetDataset.model_validate(given)
    path = next(tmp_path.rglob(f"test*/*.{kind}" if kind == "arrow" else "test*.parquet"))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a table" * 20):
        path.write_bytes(damaged)
        with pytest.raises(InvalidDataset, match=rf"{path.name} cannot be read as a .* file"):
            examine(spec, tmp_path)


def test_parquet_rows_without_a_picture_are_named(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": "a.jpg"} for data in BYTES]
    images[3] = {"bytes": None, "path": "/pictures/a.jpg"}
    images[4] = {"bytes": b"text", "path": "a.jpg"}
    spec = write(tmp_path / "a.parquet", image=images, label=LABEL)
    message = r"2 of 12 .*row 3, has no bytes, but the path '/pictures/a.jpg'.*row 4, .*cannot be read as a picture"
    with pytest.raises(InvalidDataset, match=message):
        prepare(spec, "train", tmp_path)


def write_paths(root: Path, paths: list[str | None], split: str = "train", *, missing: bool = False) -> ParquetDataset:
    """A parquet file of paths below ``set``, with a null in the place of the bytes, or without these."""
    images = [{"path": path} if missing else {"bytes": None, "path": path} for path in paths]
    write(root / "set" / f"{split}.parquet", image=images, label=np.arange(len(paths)) % 2)
    return ParquetDataset(kind="parquet", path="set")


def write_files(folder: Path, count: int) -> list[str | None]:
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        (folder / f"{row}.jpg").write_bytes(BYTES[row])
    return [f"{folder.name}/{row}.jpg" for row in range(count)]


@pytest.mark.parametrize("missing", [False, True])
def test_parquet_paths_are_files_below_the_folder_of_the_dataset(tmp_path: Path, missing: bool) -> None:
    paths = write_files(tmp_path / "set/pictures", 6)
    spec = write_paths(tmp_path, paths[::-1], missing=missing)
    source = examine(spec, tmp_path)
    assert (source.samples, source.classes) == ({"train": 6}, 2)
    rows = spec.encoded(source, "train")
    assert rows.ids == paths[::-1]
    assert rows.place(0) == f"{tmp_path}/set/pictures/5.jpg"
    assert [rows.read(row) for row in range(6)] == BYTES[5::-1]
    before = source.key()
    (tmp_path / "set/pictures/2.jpg").write_bytes(BYTES[7])
    assert examine(spec, tmp_path).key() != before


def test_parquet_texts_are_paths_if_image_names_them(tmp_path: Path) -> None:
    paths = write_files(tmp_path / "pictures", 4)
    write(tmp_path / "a.parquet", file=paths, animal=["cat", "dog", "cat", "dog"])
    with pytest.raises(
        InvalidDataset, match=r"no column of pictures .*paths as texts, if 'image' names them.*file \(s"
    ):
        examine(ParquetDataset(kind="parquet", path="a.parquet"), tmp_path)
    spec = ParquetDataset(kind="parquet", path="a.parquet", image="file")
    source = examine(spec, tmp_path)
    assert (source.labelled, len(source.notes)) == ({"train": 0}, 1)
    assert "there is animal (string)" in source.notes[0]
    named = examine(spec.model_copy(update={"label": "animal"}), tmp_path)
    assert named.class_names == ("cat", "dog")


def test_arrow_paths_are_files_below_the_folder_of_the_dataset(tmp_path: Path) -> None:
    spec = ParquetDataset.model_validate(dataset_forms.saved(tmp_path))
    table: Any = dataset_forms.hub_table("train")
    paths = write_files(tmp_path / "saved/pictures", 12)
    images = pa.array([{"bytes": None, "path": path} for path in paths], table.schema.field("image").type)
    table = table.set_column(0, "image", images)
    with pa.ipc.new_stream(str(tmp_path / "saved/train/data-00000-of-00001.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=5)
    rows = spec.encoded(examine(spec, tmp_path), "train")
    assert [rows.read(row) for row in range(12)] == BYTES
    assert spec.encoded(examine(spec, tmp_path), "test").read(3) == encoded(PICTURES["test"][3])


def test_parquet_paths_that_lead_elsewhere_are_named_all_at_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    good = write_files(root / "set/pictures", 2)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.jpg").write_bytes(BYTES[0])
    bad = [
        "/etc/passwd",
        "../../outside/a.jpg",
        "https://example.org/a.jpg",
        "pictures/9.jpg",
        None,
        "./pictures/0.jpg",
    ]
    spec = write_paths(root, [*good, *bad])
    with pytest.raises(InvalidDataset) as caught:
        examine(spec, root)
    message = str(caught.value)
    assert message.startswith(
        "set/train.parquet: 2 paths are not allowed (those below set, without '..', are): '/etc/passwd"
    )
    assert "'/etc/passwd' in row 2, '../../outside/a.jpg' in row 3" in message
    assert "1 paths are URLs (nothing is downloaded: put the files below" in message
    assert "1 files are not there (below set): 'pictures/9.jpg' in row 5" in message
    assert "1 rows have neither the bytes of a picture nor a path: None in row 6" in message
    assert "1 files are named twice: './pictures/0.jpg' in row 7" in message
    for link, target in (("set/pictures/link.jpg", "outside/a.jpg"), ("set/folder", "outside")):
        (root / link).symlink_to(tmp_path / target)
        path = "folder/a.jpg" if link == "set/folder" else "pictures/link.jpg"
        with pytest.raises(InvalidDataset, match=r"is a symbolic link that leads out of the data root"):
            examine(write_paths(root, [*good, path]), root)


def test_parquet_paths_of_test_that_link_to_train_are_said(tmp_path: Path) -> None:
    paths = write_files(tmp_path / "set/pictures", 4)
    (tmp_path / "set/pictures/same.jpg").symlink_to("0.jpg")
    write_paths(tmp_path, paths)
    spec = write_paths(tmp_path, ["pictures/same.jpg", *write_files(tmp_path / "set/others", 1)], "test")
    [note] = examine(spec, tmp_path).notes
    assert note.startswith("1 of 2 pictures of test are files of train, too, by links (pictures/same.jpg is pictures/0")


def test_parquet_row_group_is_read_in_pieces_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far apart the rows are that they want, and however little is held."""
    contents = [bytes([row % 251]) * (100 + row) for row in range(500)]
    spec = write(tmp_path / "a.parquet", image=contents, label=np.arange(500) % 2)
    monkeypatch.setattr(image_column, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(image_column, "_HELD_BYTES", 20_000)
    rows = spec.encoded(examine(spec, tmp_path), "train")
    assert 100 < rows.mean_bytes < 1000
    order = [row for start in range(50) for row in range(start, 500, 50)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rows.read, order)) == [contents[row] for row in order]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_dict.json": {"splits": ["train", "extra"]}}, "names the splits train, extra: each must be one of"),
        ({"dataset_dict.json": {"splits": ["test"]}}, "names no training split"),
        ({"dataset_dict.json": None}, "has neither dataset_dict.json nor state.json"),
        (
            {"train/state.json": {"_data_files": [{"filename": "b.arrow"}]}},
            "train/b.arrow is missing, which state.json",
        ),
        ({"train/state.json": {"_data_files": [{"filename": "../test/b"}]}}, r"names '\.\./test/b': files of data lie"),
        ({"train/state.json": {"_data_files": [{"filename": "/b.arrow"}]}}, "names '/b.arrow': files of data lie in"),
        ({"train/state.json": {"_data_files": [{"filename": "\ud800"}]}}, r"names '\\ud800': files of data lie in"),
        ({"train/state.json": {"_data_files": 3}}, "names no files of data"),
        ({"train/state.json": [1]}, "holds no JSON object"),
    ],
)
def test_saved_dataset_that_is_not_whole_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    spec = ParquetDataset.model_validate(dataset_forms.saved(tmp_path))
    for name, content in change.items():
        path = tmp_path / "saved" / name
        path.unlink() if content is None else path.write_text(json.dumps(content))
    with pytest.raises(InvalidDataset, match=message):
        examine(spec, tmp_path)


def test_saved_dataset_without_splits_is_a_training_split(tmp_path: Path) -> None:
    dataset_forms.saved(tmp_path)
    shutil.move(tmp_path / "saved/test", tmp_path / "one")
    assert examine(ParquetDataset(kind="arrow", path="one"), tmp_path).samples == {"train": 8}


def test_arrow_files_that_state_more_rows_than_their_null_bitmap_has_are_refused(tmp_path: Path) -> None:
    """Nothing is counted in a bitmap before its length was checked: it would be read beyond the file."""
    spec = ParquetDataset.model_validate(dataset_forms.saved(tmp_path))
    table: Any = dataset_forms.hub_table("train")
    rows = [{"bytes": data if row else None, "path": "a"} for row, data in enumerate(BYTES)]
    table = table.set_column(0, "image", pa.array(rows, table.schema.field("image").type))
    path = tmp_path / "saved/train/data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)
    # Rows, and those that are null, of the bytes; -1 has pyarrow count the latter.
    stated, patched = struct.pack("<qq", 12, 1), struct.pack("<qq", 400, -1)
    whole = path.read_bytes()
    assert whole.count(stated) == 1
    assert open_arrow(path).without_bytes("image") == [False]
    path.write_bytes(whole.replace(stated, patched))
    with pytest.raises(InvalidDataset, match=r"cannot be read as a Arrow file \(.*400"):
        open_arrow(path).without_bytes("image")
    with pytest.raises(InvalidDataset, match=r"cannot be read as a Arrow file \(.*400"):
        examine(spec, tmp_path)


def test_tables_without_pyarrow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidDataset, match=r"need the package pyarrow, .*pip install 'retort\[datasets\]'"):
        examine(ParquetDataset(kind="parquet", path="a.parquet"), tmp_path)


def test_the_kind_loads_no_pyarrow_before_it_reads() -> None:
    code = "import sys, workers.data.tabular.table_columns, workers.data.tabular.table_features; "
    code += "import workers.data.kinds.parquet; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
