"""Headers of tar files: the same members as tarfile's in every form, and indexes that the next process finds."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.workers.data.test_webdataset import samples, write
from workers.data.kinds.webdataset import WebDataset
from workers.data.preparation.discovery import examine
from workers.data.webdataset import kept_indexes, tar_index
from workers.data.webdataset.tar_headers import NoEnd, TarReader
from workers.errors import InvalidDataset

NAMES = ("a.jpg", "folder/b.cls", "x" * 95 + ".png", "x" * 101, "a/" * 70 + "c.jpg", "é.jpg", "\udcfc.jpg", "folder/")


def headers(path: Path) -> list[tuple[str, int, int, bool, bool]]:
    with path.open("rb") as file:
        return [tuple(member) for member in TarReader(file).members()]  # type: ignore[misc]


def of_tarfile(path: Path) -> list[tuple[str, int, int, bool, bool]]:
    with tarfile.open(path) as tar:
        return [
            (each.name, each.offset_data, each.size, each.isreg() and not each.issparse(), each.isdir()) for each in tar
        ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("seconds", [1_700_000_000, 1_700_000_000.123, -1.5])
@pytest.mark.parametrize("of_all", [{}, {"comment": "of git archive", "path": "elsewhere"}])
def test_tar_headers_are_those_of_tarfile(tmp_path: Path, form: int, seconds: float, of_all: dict[str, str]) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form, pax_headers=of_all) as tar:
        for row, name in enumerate(NAMES):
            if form == tarfile.USTAR_FORMAT and (len(name) == 101 or seconds < 0):
                continue
            member = tarfile.TarInfo(name.rstrip("/"))
            # A link, a device and an empty file are members, too.
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.mtime, member.size = seconds, 0 if member.isdir() else row * 300
            tar.addfile(member, io.BytesIO(b"1" * member.size))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE):
            member = tarfile.TarInfo(f"of type {kind.decode()}")
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    assert headers(path) == of_tarfile(path)


def test_tar_headers_of_a_size_in_base_256_and_of_the_oldest_form_are_those_of_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    old = bytearray(tarfile.TarInfo("folder/").tobuf(tarfile.USTAR_FORMAT))
    old[156:157] = b"\0"
    large = tarfile.TarInfo("large")
    large.size = 1 << 34
    blocks = [bytes(old), large.tobuf(tarfile.GNU_FORMAT)]
    with path.open("wb") as file:
        for block in blocks:
            block = bytearray(block)
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            file.write(block)
        file.seek(1 << 34, 1)
        file.write(bytes(1024))
    assert headers(path) == of_tarfile(path)
    assert [each[0] for each in headers(path)] == ["folder", "large"]


@pytest.mark.parametrize("size", [b"-0000000012", b"-0000003777", b"0x000000001", b"77777777777"])
def test_tar_headers_that_are_hostile_end_the_reading(tmp_path: Path, size: bytes) -> None:
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:135] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) * 2 + bytes(1024))
    with pytest.raises((tarfile.TarError, NoEnd)):
        headers(tmp_path / "a.tar")
    with pytest.raises(InvalidDataset, match=r"a\.tar"):
        examine(WebDataset(path="a.tar"), tmp_path)


@pytest.mark.parametrize("place", [0, 20, 130, 300])
def test_tar_headers_with_a_flipped_bit_are_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.tar"
    write(path, samples([0, 1, 0]))
    content = bytearray(path.read_bytes())
    second = content.index(b"001.jpg")
    content[second + place] ^= 1
    path.write_bytes(content)
    with pytest.raises(NoEnd, match=f"at byte {second}"):
        headers(path)


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebDataset:
    """A shard large enough for its index to be kept; nothing of it is held in this process."""
    monkeypatch.setattr(kept_indexes, "_SAMPLES_MIN", 3)
    monkeypatch.setattr(tar_index, "_held", tar_index.OrderedDict())
    members = samples([0, 1, 2, -1])
    return write(tmp_path / "a.tar", members | {"readme.md": "left out"})


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "work/indexes").glob("*"))


def test_webdataset_index_is_found_by_the_next_process(
    tmp_path: Path, shard: WebDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = examine(shard, tmp_path, tmp_path / "work")
    [index] = kept(tmp_path)
    before = index.read_bytes()
    tar_index._held.clear()
    monkeypatch.setattr(tar_index, "TarReader", None)
    again = examine(shard, tmp_path, tmp_path / "work")
    assert (again, index.read_bytes()) == (first, before)
    assert again.notes
    monkeypatch.undo()
    code = "import sys; from pathlib import Path; "
    code += "from workers.data.webdataset import tar_index; tar_index.TarReader = None; "
    code += (
        "from workers.data.preparation.discovery import examine; from workers.data.kinds.webdataset import WebDataset; "
    )
    code += "root = Path(sys.argv[1]); print(examine(WebDataset(path='a.tar'), root, root / 'work').samples)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "{'train': 4}\n"


def test_webdataset_index_of_a_changed_shard_or_one_that_is_damaged_is_made_anew(
    tmp_path: Path, shard: WebDataset
) -> None:
    work = tmp_path / "work"
    samples_before = examine(shard, tmp_path, work).samples
    [index] = kept(tmp_path)
    whole = index.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], whole.replace(b"unlabelled", b"unlabeled!")):
        index.write_bytes(damaged)
        tar_index._held.clear()
        assert examine(shard, tmp_path, work).samples == samples_before
        assert index.read_bytes() == whole
    write(tmp_path / "a.tar", samples([0, 1, 2, 1, 0, 1]))
    assert examine(shard, tmp_path, work).samples == {"train": 6}
    assert kept(tmp_path) == [index]
    newest = index.read_bytes()
    assert newest != whole
    tar_index._held.clear()
    assert examine(shard, tmp_path).samples == {"train": 6}
    assert index.read_bytes() == newest


def test_kept_indexes_that_point_outside_of_their_shard_are_not_used(tmp_path: Path, shard: WebDataset) -> None:
    found = tar_index.index_shard(tmp_path / "a.tar", None, None)
    status = (tmp_path / "a.tar").stat()
    key = kept_indexes.Key(tmp_path / "a.tar", status.st_size, status.st_mtime_ns, None, None)
    work = tmp_path / "work"
    for offset, holds in ((found.offsets_N[1], True), (status.st_size, False)):
        found.offsets_N[1] = offset
        with kept_indexes.kept_in(work):
            kept_indexes.keep(key, found)
        with kept_indexes.kept_in(work):
            assert (kept_indexes.read(key) is not None) is holds


def test_kept_indexes_are_not_written_by_refused_examinations(tmp_path: Path, shard: WebDataset) -> None:
    """Whoever may register datasets could fill the disk with those of labels that are not there."""
    for changes in ({"label": "a1"}, {"label": "a2"}, {"image": "a3"}):
        with pytest.raises(InvalidDataset):
            examine(shard.model_copy(update=changes), tmp_path, tmp_path / "work")
    assert kept(tmp_path) == []


def test_kept_indexes_of_a_shard_are_one_whatever_its_options(tmp_path: Path, shard: WebDataset) -> None:
    work = tmp_path / "work"
    for label in ("cls", "CLS", ".cls", "..cls"):
        examine(shard.model_copy(update={"label": label}), tmp_path, work)
    assert len(kept(tmp_path)) == 1
    # That of other options is not taken for it.
    status = (tmp_path / "a.tar").stat()
    key = kept_indexes.Key(tmp_path / "a.tar", status.st_size, status.st_mtime_ns, None, "..cls")
    with kept_indexes.kept_in(work):
        assert kept_indexes.read(key) is not None
        assert kept_indexes.read(key._replace(label="cls")) is None
        assert kept_indexes.read(key._replace(modified_ns=0)) is None


def test_kept_indexes_are_bounded_and_leave_a_margin_of_the_disk(
    tmp_path: Path, shard: WebDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    work = tmp_path / "work"
    examine(shard, tmp_path, work)
    [first] = kept(tmp_path)
    os.utime(first, (1e9, 1e9))
    monkeypatch.setattr(kept_indexes, "_FOLDER_MAX_BYTES", 2 * first.stat().st_size + 100)
    for name in ("b.tar", "c.tar"):
        examine(write(tmp_path / name, samples([0, 1, 2, 0])), tmp_path, work)
    assert len(kept(tmp_path)) == 2
    assert first not in kept(tmp_path)
    monkeypatch.setattr(kept_indexes, "_FOLDER_MAX_BYTES", 100)
    examine(write(tmp_path / "d.tar", samples([0, 1, 2, 0])), tmp_path, work)
    assert kept(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setattr(kept_indexes, "_SAMPLES_MIN", 3)
    monkeypatch.setattr(kept_indexes, "MARGIN_BYTES", 1 << 62)
    assert examine(write(tmp_path / "e.tar", samples([0, 1, 2, 0])), tmp_path, work).samples == {"train": 4}
    assert kept(tmp_path) == []


def test_kept_indexes_that_nobody_reads_are_removed(tmp_path: Path, shard: WebDataset) -> None:
    import os

    examine(shard, tmp_path, tmp_path / "work")
    assert kept_indexes.remove_unused(tmp_path / "work") == 0
    os.utime(kept(tmp_path)[0], (1e9, 1e9))
    assert kept_indexes.remove_unused(tmp_path / "work") == 1
    assert kept(tmp_path) == []
