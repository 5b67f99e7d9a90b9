"""Files of the attempts of a run: artifacts to list, and rests to remove."""

import shutil
import zipfile
from pathlib import Path

from service.db.models import Json
from workers.files import file_sha256
from workers.run_files import ARTIFACTS, CHECKPOINT, MEDIA_TYPES


def list_artifacts(folder: Path, data_dir: Path) -> list[Json]:
    """Rows for ``EngineQueries.record_result``: every artifact of a finished attempt, with its digest.

    What others have put beside them (``.DS_Store``) is left out.
    """
    rows = []
    for path in sorted(path for path in (folder / ARTIFACTS).iterdir() if path.name in MEDIA_TYPES):
        rows.append(
            {
                "name": path.name,
                "path": path.relative_to(data_dir).as_posix(),
                "size_bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "media_type": MEDIA_TYPES[path.name],
            }
        )
    return rows


def sweep_attempts(folder: Path, kept: Path | None, *, checkpoints: bool) -> None:
    """Remove what the attempts of an ended run have left unfinished.

    Args:
        folder: of the run.
        kept: the attempt whose artifacts count, if one has succeeded.
        checkpoints: whether these have done their duty, too.
    """
    for attempt in folder.glob("a*"):
        for path in attempt.iterdir():
            if path.name.endswith(".partial") or (path.name == ARTIFACTS and attempt != kept):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            elif path.name == CHECKPOINT and checkpoints:
                path.unlink(missing_ok=True)
    keep_farthest_checkpoint(folder)


def keep_farthest_checkpoint(folder: Path) -> None:
    """Remove the checkpoints of the attempts of a run but for the farthest, which whoever retries it goes on from.

    An attempt goes on from the farthest one that it can read, so the one of the last attempt is the farthest; what is
    no whole file does not count. While an attempt trains, its own process does this (``RunState.save``).
    """
    found = _checkpoints(folder)
    whole = [path for path in found if zipfile.is_zipfile(path)]
    if whole:
        for path in found[: found.index(whole[-1])]:
            path.unlink(missing_ok=True)


def take_checkpoint(folder: Path, kept: Path, retried: Path) -> None:
    """Move the farthest checkpoint of a run to the one that has retried it, if that has left none of its own.

    It has none where the retried one was trained and only its artifacts were missing: then that checkpoint is its last.

    Args:
        folder: of the retry.
        kept: the attempt of the retry that has succeeded.
        retried: the folder of the run that it tries again.
    """
    if _checkpoints(folder):
        return
    whole = [path for path in _checkpoints(retried) if zipfile.is_zipfile(path)]
    if whole:
        whole[-1].replace(kept / CHECKPOINT)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of the attempts of a run, those of the first attempt first."""
    attempts = sorted(folder.glob("a*"), key=lambda path: int(path.name[1:]) if path.name[1:].isdecimal() else 0)
    return [attempt / CHECKPOINT for attempt in attempts if (attempt / CHECKPOINT).is_file()]
