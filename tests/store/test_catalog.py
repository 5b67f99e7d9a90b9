"""The catalog: what there is, removing it, and finding and naming every kind of damage."""

import os
import random
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from store import (
    AmbiguousKey,
    CacheCorrupt,
    CacheNotFound,
    CacheReader,
    CacheSpec,
    CacheWriter,
    Catalog,
    InvalidArgument,
    StoreError,
)
from store.documents import commits_sha256, load_record
from store.layout import chunk_name
from store.statistics import STATISTICS, rounding_errors, row_statistics, statistic_tolerances
from tests.support.store_cases import make_logits, make_spec, write_blocks, write_cache

SPEC = make_spec(views=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("original"), SPEC).path


@pytest.fixture
def group(original: Path, tmp_path: Path) -> Path:
    """A cache that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / SPEC.key))


def flip_bit(path: Path, offset: int = 5000) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def bring_stale_record(group: Path) -> None:
    """A record of the same block, left over from a run with other logits."""
    stale = CacheWriter(group.parent / "stale", SPEC)
    stale.write_block(1, make_logits(SPEC)[4096:8192] + 1)
    shutil.copy(stale.path / "commits/0-1.json", group / "commits/0-1.json")
    shutil.rmtree(group.parent / "stale")


# What it is, how it is done, the file that must be named, and the cheapest that finds it: listing the caches,
# opening this one, or reading every byte of it.
DAMAGES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("bit flipped in logits", lambda g: flip_bit(g / "logits/c/1/0/0"), "logits/c/1/0/0", "verifying"),
    ("bit flipped in padding", lambda g: flip_bit(g / "logits/c/1/2/0", 70_000), "logits/c/1/2/0", "verifying"),
    ("bit flipped in statistics", lambda g: flip_bit(g / "std/c/0/2", 99), "std/c/0/2", "opening"),
    ("bit flipped in checksum", lambda g: flip_bit(g / "logits/c/0/0/0", -1), "logits/c/0/0/0", "listing"),
    ("chunk cut", lambda g: os.truncate(g / "logits/c/0/1/0", 5000), "logits/c/0/1/0", "listing"),
    ("chunk emptied", lambda g: os.truncate(g / "mean/c/1/1", 0), "mean/c/1/1", "listing"),
    ("chunk longer", lambda g: os.truncate(g / "logits/c/0/1/0", 90_000), "logits/c/0/1/0", "listing"),
    ("chunk deleted", lambda g: (g / "logits/c/1/2/0").unlink(), "logits/c/1/2/0", "listing"),
    ("statistic deleted", lambda g: (g / "sharpness/c/0/0").unlink(), "sharpness/c/0/0", "listing"),
    ("chunks swapped", lambda g: swap(g / "logits/c/0/0/0", g / "logits/c/1/1/0"), "logits/c/0/0/0", "listing"),
    ("statistics swapped", lambda g: swap(g / "max/c/0/0", g / "max/c/0/1"), "max/c/0/0", "listing"),
    ("record stale", bring_stale_record, "commits/0-1.json", "listing"),
    (
        "record of another block",
        lambda g: swap(g / "commits/0-1.json", g / "commits/0-0.json"),
        "commits/0-0",
        "listing",
    ),
    ("record deleted", lambda g: (g / "commits/1-0.json").unlink(), "commits/1-0.json", "listing"),
    ("record is no JSON", lambda g: (g / "commits/1-0.json").write_text("{"), "commits/1-0.json", "listing"),
    (
        "record of no block",
        lambda g: shutil.copy(g / "commits/0-1.json", g / "commits/9-1.json"),
        "commits/9-1",
        "verifying",
    ),
    ("not complete", lambda g: (g / "COMPLETE").unlink(), "6 of 6 blocks are committed", "listing"),
    ("marker emptied", lambda g: os.truncate(g / "COMPLETE", 0), "COMPLETE", "listing"),
    ("marker of another cache", lambda g: edit(g / "COMPLETE", SPEC.key, "f" * 64), "COMPLETE", "listing"),
    ("spec edited", lambda g: edit(g / "zarr.json", '"split": "train"', '"split": "test"'), "zarr.json", "listing"),
    ("key edited", lambda g: edit(g / "zarr.json", SPEC.key, "f" * 64), "zarr.json", "listing"),
    ("manifest deleted", lambda g: (g / "zarr.json").unlink(), "zarr.json", "listing"),
    ("manifest of somebody else", lambda g: (g / "zarr.json").write_text("[]"), "zarr.json", "listing"),
    ("shape edited", lambda g: edit(g / "min/zarr.json", "8292", "8291"), "min/zarr.json", "listing"),
    ("codec edited", lambda g: edit(g / "logits/zarr.json", "little", "big"), "logits/zarr.json", "listing"),
]


@pytest.mark.parametrize(("name", "damage", "named", "found_by"), DAMAGES, ids=[case[0] for case in DAMAGES])
def test_verify_finds_and_names_every_damage(
    group: Path, name: str, damage: Callable[[Path], object], named: str, found_by: str
) -> None:
    damage(group)
    catalog = Catalog(group.parent)
    problems = catalog.verify(SPEC.key).problems
    assert any(re.search(named, problem) for problem in problems), problems
    if found_by == "verifying":
        CacheReader.from_key(group.parent, SPEC.key)
    else:
        with pytest.raises(StoreError, match=named):
            CacheReader.from_key(group.parent, SPEC.key)
    entry = catalog.get(SPEC.key)
    if found_by == "listing":
        assert entry.state == ("partial" if name == "not complete" else "corrupt")
    else:
        assert (entry.state, entry.problem) == ("complete", None)


STRAYS = ("._0-0.json", ".DS_Store", "Thumbs.db", "desktop.ini", "0-0.json.1f.partial", "0-0 (copy).json")


def test_verify_ignores_the_files_of_file_managers(group: Path) -> None:
    """In any folder of it, and beside it: nothing is corrupt, unknown, or an origin of blocks."""
    for folder in (group.parent, *(path for path in group.rglob("*") if path.is_dir()), group, group / "provenance"):
        folder.mkdir(exist_ok=True)
        for name in (*STRAYS, f"._{group.name}", "._zarr.json", "._0", "._0123456789abcdef.json"):
            (folder / name).write_bytes(b"\0\5\x16\7")
    catalog = Catalog(group.parent)
    assert catalog.verify(SPEC.key).problems == []
    (entry,) = catalog.list()
    assert (entry.state, entry.problem) == ("complete", None)
    assert "computed_on" not in CacheReader.from_key(group.parent, SPEC.key).provenance


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole caches of the same shape with other logits: another teacher's, and an older writing of the same."""
    found = {}
    for name, spec in (("another", make_spec(views=2, teacher_sha256="c3" * 32)), ("older", SPEC)):
        writer = CacheWriter(tmp_path_factory.mktemp(name), spec)
        for block in range(spec.blocks):
            view, start, stop = spec.block_range(block)
            writer.write_block(block, make_logits(spec, view)[start:stop] + 1)
        writer.finish()
        found[name] = writer.path
    return found


BLOCK = ["logits/c/0/1/0", *(f"{name}/c/0/1" for name in STATISTICS), "commits/0-1.json"]
ALL_BUT_MANIFEST = ["logits", *STATISTICS, "commits", "COMPLETE"]
FOREIGN: list[tuple[str, list[str], str]] = [
    # from which cache, what is brought from there, the file that must be named
    ("another", ["logits/c/1/1/0"], "logits/c/1/1/0"),
    ("another", ["std/c/0/2"], "std/c/0/2"),
    ("another", ["commits/0-1.json"], "commits/0-1.json"),
    ("another", BLOCK, "COMPLETE"),
    ("another", ["COMPLETE"], "COMPLETE"),
    ("another", ["zarr.json"], "zarr.json"),
    ("another", ALL_BUT_MANIFEST, "COMPLETE"),
    ("another", ["zarr.json", *ALL_BUT_MANIFEST], "zarr.json"),  # a folder under another key
    ("older", ["logits/c/1/1/0"], "logits/c/1/1/0"),
    ("older", ["commits/0-1.json"], "commits/0-1.json"),
    ("older", BLOCK, "COMPLETE"),
    ("older", ["COMPLETE"], "COMPLETE"),
]


@pytest.mark.parametrize(("source", "brought", "named"), FOREIGN)
def test_verify_names_parts_of_another_cache_or_of_an_older_writing(
    group: Path, others: dict[str, Path], source: str, brought: list[str], named: str
) -> None:
    for name in brought:
        if (group / name).is_dir():
            shutil.rmtree(group / name)
            shutil.copytree(others[source] / name, group / name)
        else:
            shutil.copy(others[source] / name, group / name)
    start = f"{group / named}: "
    problems = Catalog(group.parent).verify(SPEC.key).problems
    assert any(problem.startswith(start) for problem in problems), problems
    with pytest.raises(StoreError, match=f"^{re.escape(start)}"):
        CacheReader.from_key(group.parent, SPEC.key)
    assert Catalog(group.parent).get(SPEC.key).state == "corrupt"


def test_verify_names_a_flipped_bit_in_any_file_but_the_manifests(group: Path) -> None:
    generator = random.Random(0)
    for path in sorted(group.rglob("*")):
        if not path.is_file() or path.name == "zarr.json":
            continue
        whole = path.read_bytes()
        for _ in range(1 if "c" in path.parts else 5):  # a record's few fields are each found in another way
            flipped = bytearray(whole)
            flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            problems = Catalog(group.parent).verify(SPEC.key).problems
            assert any(problem.startswith(f"{path}: ") for problem in problems), (path, problems)
        path.write_bytes(whole)
    assert Catalog(group.parent).verify(SPEC.key).ok


def test_verify_names_both_of_two_swapped_chunks(group: Path) -> None:
    swap(group / "logits/c/0/1/0", group / "logits/c/1/0/0")
    problems = Catalog(group.parent).verify(SPEC.key).problems
    assert [problem.split(":")[0] for problem in problems] == [
        f"{group}/logits/c/0/1/0",
        f"{group}/logits/c/1/0/0",
    ]


def test_verify_names_several_damages_and_counts_the_rest(group: Path) -> None:
    flip_bit(group / "logits/c/0/0/0")
    flip_bit(group / "min/c/0/0")
    (group / "logits/c/1/2/0").unlink()
    report = Catalog(group.parent).verify(SPEC.key)
    assert [problem.removeprefix(f"{group}/").split(":")[0] for problem in report.problems] == [
        "logits/c/0/0/0",
        "min/c/0/0",
        "logits/c/1/2/0",
    ]
    assert report.blocks_checked == 4
    assert report.rows_checked == 2 * 8292 - 4096 - 100


def test_verify_accepts_a_whole_cache(group: Path) -> None:
    report = Catalog(group.parent).verify(SPEC.key)
    assert report.problems == []
    assert report.ok
    assert (report.blocks_checked, report.rows_checked) == (6, 2 * 8292)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_verify_finds_a_statistic_of_other_logits_though_every_checksum_fits(
    tmp_path: Path, statistic: str, dtype: str
) -> None:
    spec = make_spec(dtype=dtype, samples=100)
    group = write_cache(tmp_path, spec).path
    assert Catalog(tmp_path).verify(spec.key).ok
    name = chunk_name(statistic, spec, 0)
    values = np.frombuffer((group / name).read_bytes()[:-4], np.float32).copy()
    values[17] *= np.float32(1.01)
    checksum = google_crc32c.value(values.view(np.uint8))
    (group / name).write_bytes(values.tobytes() + checksum.to_bytes(4, "little"))
    record = load_record(group, spec, 0)
    assert record is not None
    file = record.files[name].model_copy(update={"crc32c": checksum})
    forged = record.model_copy(update={"files": {**record.files, name: file}})
    (group / "commits/0-0.json").write_bytes(forged.to_bytes())
    edit(group / "COMPLETE", commits_sha256(iter([record])), commits_sha256(iter([forged])))
    CacheReader(tmp_path, spec)  # it cannot know
    (problem,) = Catalog(tmp_path).verify(spec.key).problems
    assert f"{name}: 1 values do not belong to the logits; row 17" in problem


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 3000.0])
def test_rounding_errors_to_float16_never_exceed_the_stated_bound(classes: int, scale: float) -> None:
    logits = np.random.default_rng(classes).normal(0, scale, (2000, classes)).astype(np.float32)
    rounded = logits.astype(np.float16)
    exact, recomputed = row_statistics(logits), row_statistics(rounded.astype(np.float32))
    for name in STATISTICS:
        apart = np.abs(exact[name].astype(np.float64) - recomputed[name])
        assert (apart <= statistic_tolerances(rounded, rounding_errors(rounded), name, recomputed[name])).all()


def test_catalog_list_has_state_progress_size_and_times(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "caches")
    assert catalog.list() == []
    before = datetime.now(UTC) - timedelta(seconds=1)
    whole = write_cache(catalog.root, make_spec())
    partial = CacheWriter(catalog.root, make_spec(views=2), provenance={"device": "gpu"})
    write_blocks(partial, [0, 2])
    broken = write_cache(catalog.root, make_spec(samples=10))
    (broken.path / "zarr.json").write_text("not JSON")
    (catalog.root / "README").write_text("no cache")
    entries = {entry.key: entry for entry in catalog.list()}
    assert list(entries) == sorted([whole.spec.key, partial.spec.key, broken.spec.key])
    entry = entries[whole.spec.key]
    assert (entry.spec, entry.state, entry.rows_committed, entry.problem) == (make_spec(), "complete", 8292, None)
    assert entry.size_bytes == sum(path.stat().st_size for path in whole.path.rglob("*") if path.is_file())
    assert entry.created_at is not None
    assert before <= entry.created_at <= datetime.now(UTC)
    assert entry.last_used_at is None
    entry = entries[partial.spec.key]
    assert (entry.state, entry.rows_committed, entry.provenance) == ("partial", 4096 + 100, {"device": "gpu"})
    entry = entries[broken.spec.key]
    assert (entry.state, entry.spec, entry.created_at) == ("corrupt", None, None)
    assert "zarr.json: not JSON" in str(entry.problem)


def test_catalog_touch_sets_the_time_of_last_use_and_changes_nothing_else(group: Path) -> None:
    catalog = Catalog(group.parent)
    for _ in range(2):
        before = datetime.now(UTC)
        catalog.touch(SPEC.key)
        found = catalog.get(SPEC.key).last_used_at
        assert found is not None
        assert before <= found <= datetime.now(UTC)
    assert catalog.verify(SPEC.key).ok
    (group / "LAST_USED").write_text("yesterday")
    assert catalog.get(SPEC.key).last_used_at is None
    with pytest.raises(CacheNotFound):
        catalog.touch("a" * 64)


def test_catalog_delete_removes_a_cache_with_all_its_files(group: Path) -> None:
    catalog = Catalog(group.parent)
    catalog.delete(SPEC.key)
    assert catalog.list() == []
    assert os.listdir(group.parent) == []
    for ask in (catalog.get, catalog.delete, catalog.verify, catalog.touch):
        with pytest.raises(CacheNotFound, match=SPEC.key):
            ask(SPEC.key)
        with pytest.raises(InvalidArgument):
            ask("../elsewhere")
    assert write_cache(group.parent, SPEC).is_complete


def test_catalog_delete_that_dies_half_way_is_a_deletion(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            Catalog(group.parent).delete(SPEC.key)
    catalog = Catalog(group.parent)
    assert catalog.list() == []
    assert catalog.sweep() == 1
    assert os.listdir(group.parent) == []


def test_catalog_delete_takes_a_corrupt_cache(group: Path) -> None:
    (group / "zarr.json").unlink()
    Catalog(group.parent).delete(SPEC.key)
    assert not group.exists()


def test_catalog_sweep_removes_leftovers_of_killed_deletions_and_creations(group: Path) -> None:
    root = group.parent
    catalog = Catalog(root)
    for name in (f".deleted-{SPEC.key}-1", f".creating-{SPEC.key}-2", f".creating-{SPEC.key}-3"):
        shutil.copytree(group, root / name)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    os.utime(root / f".creating-{SPEC.key}-2", (long_ago.timestamp(),) * 2)
    assert [entry.key for entry in catalog.list()] == [SPEC.key]
    assert catalog.sweep() == 2
    assert sorted(os.listdir(root)) == [f".creating-{SPEC.key}-3", SPEC.key]  # one may still be in the making
    assert Catalog(root / "nowhere").sweep() == 0


def test_catalog_resolve_finds_a_key_by_its_prefix_as_git_does(tmp_path: Path) -> None:
    specs: dict[str, CacheSpec] = {}
    for seed in range(10_000):
        spec = make_spec(augmentation_seed=seed)
        other = specs.setdefault(spec.key[:4], spec)
        if other is not spec:
            break
    for either in (spec, other):
        CacheWriter(tmp_path, either)
    catalog = Catalog(tmp_path)
    assert catalog.resolve(spec.key) == spec.key
    assert catalog.resolve(spec.key[:20]) == spec.key
    with pytest.raises(AmbiguousKey, match=rf"{spec.key[:4]} starts 2 keys.*{other.key}"):
        catalog.resolve(spec.key[:4])
    with pytest.raises(CacheNotFound):
        catalog.resolve("0" * 64)
    for wrong in ("abc", "ABCD", "../..", "g" * 8, "a" * 65):
        with pytest.raises(InvalidArgument, match="4 to 64 lower-case hex digits"):
            catalog.resolve(wrong)


def test_cache_corrupt_is_a_value_error_too(group: Path) -> None:
    os.truncate(group / "logits/c/0/1/0", 5000)
    with pytest.raises(ValueError, match="5000 bytes, and must have 81924") as caught:
        CacheReader(group.parent, SPEC)
    assert isinstance(caught.value, CacheCorrupt)
