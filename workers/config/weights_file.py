"""Files of initial weights: below the data root, uploaded, or among what an earlier run has left. Light: no torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from workers.config.initial_weights import RunWeights, StoredInit, UploadedWeights
from workers.config.job import StudentSpec
from workers.config.task import Folders
from workers.data.confinement import inside, resolve, root_folder
from workers.errors import InvalidDataset, InvalidJob
from workers.files import file_sha256
from workers.students.catalog import plain_name
from workers.students.program import is_uploaded

# What torch.save writes: a pickle, which nothing here opens.
_PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"})
_CONFIG_BYTES_MAX = 1 << 20
MODEL_FILE = "model.safetensors"


def find_weights(init: StoredInit, student: str, folders: Folders) -> Path:
    """Absolute path of the file.

    Args:
        student: whose weights they are to be: the ``config.json`` of a folder must say the same architecture.

    Raises:
        InvalidJob: it is not there, outside of its root, a pickle, or of another architecture.
    """
    if isinstance(init, RunWeights):
        if init.file is None:
            raise InvalidJob(
                f'"init" names run {init.run!r}, which the service alone can look up: submit the job there, or name '
                'the file of its weights by {"weights": PATH}'
            )
        path = folders.data_dir / init.file
        if not path.is_file():
            raise InvalidJob(f"the weights of run {init.run!r} are gone: its job was deleted. Name another run")
        return path
    if isinstance(init, UploadedWeights):
        return _uploaded(init, folders)
    try:
        path = resolve(init.weights, folders.data_root)
        if path.is_dir():
            root = root_folder(folders.data_root)
            _check_config(inside(path / "config.json", root), init.weights, student)
            path = inside(path / MODEL_FILE, root)
    except InvalidDataset as error:
        raise InvalidJob(str(error).replace("dataset path", "weights", 1)) from error
    if path.suffix.lower() in _PICKLES:
        raise InvalidJob(
            f"weights {init.weights!r} are a pickle, which runs code when it is opened: convert it where you trust it, "
            "by safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )
    if not path.is_file():
        raise InvalidJob(f"weights {init.weights!r} are no file, nor a folder with {MODEL_FILE} and config.json")
    return path


def find_program(student: StudentSpec, folders: Folders) -> Path | None:
    """File of a student that is an uploaded program; None of all others.

    Raises:
        InvalidJob: it is gone or has changed, or no service has looked it up.
    """
    if not is_uploaded(student.name):
        return None
    if student.program is None:
        raise InvalidJob(
            f"student {student.name!r} is an upload, which the service alone can look up: submit the job there"
        )
    path = folders.student_files / f"{student.program}.safetensors"
    if not path.is_file() or file_sha256(path) != student.program:
        raise InvalidJob(f"the file of student {student.name!r} is gone or damaged: upload it again, and post anew")
    return path


def _uploaded(init: UploadedWeights, folders: Folders) -> Path:
    """File of uploaded weights. Raises InvalidJob."""
    if init.sha256 is None:
        raise InvalidJob(
            f'"init" names the upload {init.upload!r}, which the service alone can look up: submit the job there, or '
            'name the file of its weights by {"weights": PATH}'
        )
    path = folders.student_files / f"{init.sha256}.safetensors"
    if not path.is_file():
        raise InvalidJob(f"the uploaded weights {init.upload!r} are gone: upload them again, and post the job anew")
    return path


def _check_config(path: Path, given: str, student: str) -> None:
    """Refuse a folder whose config.json names another architecture than the student's. Raises InvalidJob."""
    if not path.is_file():
        raise InvalidJob(f"folder {given!r} has no config.json: name the safetensors file itself")
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_CONFIG_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise InvalidJob(f"config.json of {given!r} is not readable JSON: {error}") from error
    named = config.get("architecture") if isinstance(config, Mapping) else None
    if not isinstance(named, str):
        raise InvalidJob(
            f"config.json of {given!r} names no `architecture`, as timm's does: name the safetensors file itself"
        )
    # timm adds the name of pretrained weights after a dot.
    if plain_name(named.partition(".")[0]) != plain_name(student):
        raise InvalidJob(f"weights {given!r} are of architecture {named!r}, and the student is {student!r}")


def check_digest(init: StoredInit, path: Path) -> str:
    """SHA-256 of the file. Raises InvalidJob if it is not the one that ``init`` has."""
    digest = file_sha256(path)
    if init.sha256 not in (None, digest):
        what = _source(init)
        raise InvalidJob(
            f"the weights of {what} have SHA-256 {digest}, expected {init.sha256}: they have changed since the job was "
            "made; submit it again"
        )
    return digest


def _source(init: StoredInit) -> str:
    """Source of the weights, to follow "the weights of"."""
    if isinstance(init, RunWeights):
        return f"run {init.run!r}"
    return f"the upload {init.upload!r}" if isinstance(init, UploadedWeights) else repr(init.weights)


def describe_weights(init: StoredInit, summary: str) -> str:
    """Sentence for a log on whose weights are taken, and which."""
    source = f"run {init.run}" if isinstance(init, RunWeights) else _source(init)
    return f"weights of {source} (SHA-256 {str(init.sha256)[:12]}): {summary}"
