"""Bad pictures: all reported, refused or left out; and the orientation that EXIF data states."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.workers.data.test_discovery import make_folder
from tests.workers.data.test_prepared import truncate
from workers.data.decoding.picture_blocks import find_bad
from workers.data.decoding.picture_decoder import PictureDecoder
from workers.data.kinds.encoded import EncodedFiles
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation import decoded
from workers.data.preparation import prepare as preparation
from workers.data.preparation.bad_picture_reports import read_reports
from workers.data.preparation.discovery import examine
from workers.data.preparation.prepared import Dataset
from workers.errors import InvalidDataset
from workers.events import Log, Split, never

REFUSE = FolderDataset(path="pets")
SKIP = FolderDataset(path="pets", on_bad_picture="skip")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Fourteen training pictures of each class, of which 13 cats are damaged, and one test dog."""
    folder = make_folder(tmp_path, pictures=14)
    for number in range(13):
        (folder / f"train/cat/{number}.png").write_bytes(b"no picture")
    truncate(folder / "test/dog/0.png")
    return tmp_path


def prepare(spec: FolderDataset, split: Split, root: Path) -> tuple[Dataset, list[str]]:
    warnings: list[str] = []

    def note(event: object) -> None:
        if isinstance(event, Log) and event.level == "warning":
            warnings.append(event.message)

    return preparation.prepare(spec, split, root, root / "work", note), warnings


def test_bad_pictures_are_all_reported_when_they_are_refused(root: Path) -> None:
    work_dir = root / "work"
    logged: list[str] = []

    def note(event: object) -> None:
        logged.append(getattr(event, "message", ""))

    with pytest.raises(InvalidDataset, match=r"^13 of 28 pictures .*; and 3 more; pets/test/dog/0\.png cannot be read"):
        preparation.prepare_splits(REFUSE, ("train", "test"), root, work_dir, emit=note)
    train, test = read_reports(work_dir, REFUSE)
    assert [(report.split, report.pictures, report.left_out, report.bad) for report in (train, test)] == [
        ("train", 28, False, 13),
        ("test", 28, False, 1),
    ]
    assert [name for name, _ in train.listed()] == sorted(f"train/cat/{number}.png" for number in range(13))
    [(name, reason)] = test.listed()
    assert name == "test/dog/0.png"
    assert reason.endswith(" (the file ends before its picture does)")
    assert sum(message.count("no picture'") for message in logged) == 13


def test_bad_pictures_are_left_out_where_that_is_asked_for(root: Path) -> None:
    train, warnings = prepare(SKIP, "train", root)
    assert (train.samples, train.labels_N.tolist()) == (15, [0] + [1] * 14)
    assert train.sample_ids is not None
    assert train.sample_ids[:2] == ["train/cat/13.png", "train/dog/0.png"]
    np.testing.assert_array_equal(train.take(slice(0, 1))[0, 0, 0], (0, 13, 0))
    assert warnings[0] == "13 of 28 pictures of train are bad and were left out"
    again, told_again = prepare(SKIP, "train", root)
    assert (again.fingerprint, told_again) == (train.fingerprint, warnings)
    files, _ = prepare(SKIP.model_copy(update={"storage": "files"}), "train", root)
    assert files.fingerprint == train.fingerprint
    [report] = read_reports(root / "work", SKIP)
    assert report.left_out
    assert len(list(report.listed())) == 13


def test_bad_pictures_of_a_split_that_has_no_other_are_not_said_to_be_left_out(root: Path) -> None:
    for path in (root / "pets/test").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(InvalidDataset):
        prepare(SKIP, "test", root)
    prepare(SKIP, "train", root)
    assert [report.left_out for report in read_reports(root / "work", SKIP)] == [True, False]
    # As one that another process removes meanwhile.
    (root / f"work/{decoded.SOURCES}/0{decoded.REPORT_SUFFIX}").symlink_to("gone")
    assert [report.split for report in read_reports(root / "work", SKIP)] == ["train", "test"]


def test_bad_pictures_that_are_mended_are_reported_no_more(root: Path) -> None:
    prepare(SKIP, "test", root)
    Image.new("RGB", (4, 4)).save(root / "pets/test/dog/0.png")
    test, warnings = prepare(SKIP, "test", root)
    assert (test.samples, warnings, read_reports(root / "work", SKIP)) == (28, [], [])


def test_skipping_is_part_of_a_dataset_s_identity(root: Path) -> None:
    assert examine(SKIP, root).key() != examine(REFUSE, root).key()
    assert '"on_bad_picture":"skip"' in SKIP.model_dump_json()


def test_skipping_streams_the_pictures_that_stay(root: Path) -> None:
    files, _ = prepare(SKIP.model_copy(update={"storage": "files"}), "train", root)
    np.testing.assert_array_equal(files.take(np.array([0, 1]))[:, 0, 0], [(0, 13, 0), (1, 0, 0)])


def test_skipping_refuses_to_lose_a_class_another_size_and_what_the_disk_does_not_give(root: Path) -> None:
    odd = root / "pets/train/dog/13.png"
    Image.new("RGB", (5, 4)).save(odd)
    with pytest.raises(InvalidDataset, match=r"dog/13\.png is 4 x 5 pixels .* give image_size"):
        prepare(SKIP, "train", root)
    odd.write_bytes(b"")
    (root / "pets/train/cat/13.png").write_bytes(b"")
    with pytest.raises(InvalidDataset, match=r"all 14 training pictures of class 0 \('cat'\) are damaged"):
        prepare(SKIP, "train", root)
    rows = SKIP.encoded(examine(SKIP, root), "train")
    odd.unlink()
    with pytest.raises(InvalidDataset, match=r"dog/13\.png cannot be read as a picture: No such file"):
        find_bad(rows, PictureDecoder(), never)


def test_pictures_are_turned_as_exif_says_where_that_is_asked_for() -> None:
    """As PIL turns them, all eight orientations; data that is no EXIF turns nothing."""
    picture = Image.fromarray(np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3) * 5)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        picture.save(file, "PNG", exif=exif)
        data = file.getvalue()
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            expected = np.asarray(upright)
            resized = np.asarray(upright.resize((4, 6), Image.Resampling.BILINEAR))
        decoder = PictureDecoder(exif_orientation=True)
        np.testing.assert_array_equal(decoder.decode(data, "a.png"), expected)
        np.testing.assert_array_equal(PictureDecoder((6, 4), exif_orientation=True).decode(data, "a.png"), resized)
        np.testing.assert_array_equal(PictureDecoder().decode(data, "a.png"), np.asarray(picture))
    file = io.BytesIO()
    picture.save(file, "PNG", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(decoder.decode(file.getvalue(), "a.png"), np.asarray(picture))


def test_files_that_stay_files_are_turned_as_the_decoded_copy_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in folder.rglob("*.png"):
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path, exif=exif)
    upright: dict[str, EncodedFiles] = {
        storage: FolderDataset.model_validate({"path": "pets", "storage": storage, "exif_orientation": True})
        for storage in ("decoded", "files")
    }
    decoded = preparation.prepare(upright["decoded"], "train", tmp_path, tmp_path / "one")
    files = preparation.prepare(upright["files"], "train", tmp_path, tmp_path / "two")
    np.testing.assert_array_equal(files.take(slice(0, 2)), decoded.take(slice(0, 2)))
    assert files.take(slice(0, 1))[0, 0, 0].tolist() == [45, 46, 47]
