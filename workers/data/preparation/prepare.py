"""Preparation of datasets: each split is decoded once, into a folder named by the fingerprint of its content.

``prepare`` decodes a split to ``<work_dir>/<fingerprint>/`` and notes which source it came from, so that later calls
map it without decoding:

    <fingerprint>/images.npy    uint8 [N, H, W, C]
    <fingerprint>/labels.npy    int64 [N]
    <fingerprint>/row_digests.npy    uint64 [N], see ``row_digests``
    <fingerprint>/sample_ids.bin     see ``sample_ids``
    <fingerprint>/meta.json     shape, class names, channel mean and std, size of each file
    sources/<source key>.<split>.json    {"fingerprint": ..., "spec": ...}

A folder of pictures that is to stay files is read as often, once, and leaves a list of them instead of
``images.npy`` (see ``image_files``) in ``<fingerprint>.files/``. Where both are there, the decoded copy
is used: the pictures are the same.

A prepared folder appears whole or not at all (written aside, fsync, rename); processes that prepare the same source
wait for the first of them. Nothing is downloaded.

Legend: N samples, b samples of a block, H x W pixels, C channels.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from workers.data.confinement import named_below
from workers.data.dataset_kind import DatasetKind, Source
from workers.data.decoding.bad_pictures import BadPictures
from workers.data.preparation import decoded
from workers.data.preparation.bad_picture_reports import Refusals, log_left_out, log_report, write_report
from workers.data.preparation.discovery import examine
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.image_files import ListedFiles
from workers.data.preparation.prepared import Dataset, DecodedDataset, open_prepared, read_meta
from workers.data.preparation.prepared_writer import publish, write_durably, write_split
from workers.data.webdataset import kept_indexes
from workers.events import DatasetReady, Emit, Log, ShouldStop, Split, Stage, ignore, never
from workers.files import alone, disk_full_is_disk_low

_PREPARES = "prepares the same dataset"


def prepare_splits(
    spec: DatasetKind,
    splits: Collection[Split],
    data_root: Path,
    work_dir: Path,
    *,
    holdout: Holdout | None = None,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> dict[Split, Dataset]:
    """Prepare these splits of a dataset: decoded on the first call, mapped on every later one.

    Args:
        splits: to prepare.
        holdout: the validation split is cut from the training split.

    Raises:
        InvalidDataset: a split cannot be used; the message is of all that cannot.
        DiskLow, Stopped: as ``prepare``.
    """
    emit(Stage(stage="preparing"))
    found: dict[Split, Dataset] = {}
    refusals = Refusals()
    for split in splits:
        with refusals.collecting():
            if split != "validation" or holdout is None:
                found[split] = prepare(spec, split, data_root, work_dir, emit=emit, should_stop=should_stop)
            elif "train" in found:
                found[split] = hold_out(found["train"], holdout, work_dir, emit)
    refusals.check(work_dir, spec)
    return found


def prepare(
    spec: DatasetKind,
    split: Split,
    data_root: Path,
    work_dir: Path,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> Dataset:
    """Decode a split, or map what an earlier call decoded from the same files.

    Where pictures stay files, they are decoded all the same, to know what they are, and not kept.

    Emits ``DatasetReady`` at the end, and a ``Log`` now and then while decoding.

    Raises:
        InvalidDataset: missing, outside ``data_root``, unreadable or inconsistent.
        DiskLow: no room in ``work_dir``; nothing is left behind.
        Stopped: ``should_stop`` returned true; nothing is left behind.
    """
    with named_below(data_root), kept_indexes.kept_in(work_dir):
        return _prepare(spec, split, data_root, work_dir, emit=emit, should_stop=should_stop)


def _prepare(
    spec: DatasetKind, split: Split, data_root: Path, work_dir: Path, emit: Emit, should_stop: ShouldStop
) -> Dataset:
    source = examine(spec, data_root, work_dir)
    key = source.key()
    listed = ListedFiles(source, key) if spec.keeps_files else None
    pointer = work_dir / decoded.SOURCES / f"{key}.{split}.json"
    pointer.parent.mkdir(parents=True, exist_ok=True)
    lock = pointer.with_suffix(".lock")
    with alone(lock, should_stop, _PREPARES), disk_full_is_disk_low(work_dir, "a dataset"):
        with decoded.publish_lock(work_dir):
            dataset = _remembered(pointer, work_dir, listed)
        reused = dataset is not None
        if dataset is None:
            dataset = _decode(source, split, pointer, listed, emit=emit, should_stop=should_stop)
    if spec.leaves_out:
        log_left_out(work_dir, spec, split, emit)
    emit(
        DatasetReady(
            split=split,
            fingerprint=dataset.fingerprint,
            samples=dataset.samples,
            classes=dataset.classes,
            reused=reused,
        )
    )
    return dataset


def _decode(
    source: Source, split: Split, pointer: Path, listed: ListedFiles | None, *, emit: Emit, should_stop: ShouldStop
) -> Dataset:
    """Decode a split, and note at ``pointer`` what it became; bad pictures are reported beside it."""
    spec, work_dir = source.spec, pointer.parent.parent
    _warn_of_ignored(source, emit)
    partial = work_dir / f"{decoded.PARTIAL_PREFIX}{pointer.stem}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        decoding = spec.decode(source, split, should_stop)
        fingerprint = write_split(decoding, split, partial, emit=emit, listed=listed)
        dataset = publish(partial, fingerprint, decoding, keeps_files=listed is not None)
    except BadPictures as error:
        if report := write_report(pointer, spec, split, error.bad, pictures=error.pictures, left_out=False):
            log_report(report, emit)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    pictures = dataset.samples + len(decoding.left_out)
    write_report(pointer, spec, split, decoding.left_out, pictures=pictures, left_out=True)
    write_durably(pointer, {"fingerprint": fingerprint, "spec": spec.content_description()})
    return dataset


def _remembered(pointer: Path, work_dir: Path, listed: ListedFiles | None) -> Dataset | None:
    """Copy or list that this source was decoded to, if it is still there and whole.

    A list will do where one is wanted, if it is of this source's files: others that hold the same pictures
    may change on their own.
    """
    try:
        dataset = open_prepared(work_dir, json.loads(pointer.read_text())["fingerprint"])
        if isinstance(dataset, DecodedDataset):
            return dataset
        if listed is not None and read_meta(dataset.path)["files"]["source"] == listed.key:
            return dataset
    except (OSError, ValueError, KeyError):  # InvalidDataset is a ValueError
        pass
    return None


def _warn_of_ignored(source: Source, emit: Emit) -> None:
    if source.ignored and source.path:
        first = source.ignored[0].relative_to(source.path)
        emit(
            Log(
                level="warning",
                message=f"{len(source.ignored)} files are not pictures, or lie beside class folders, and were left "
                f"out, e.g. {first}",
            )
        )
