"""Initial weights of a student: drawn from the seed, those of an earlier run, of a file, or of an uploaded one."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from workers.spec import RelativePath, Sha256, Spec


class RunWeights(Spec):
    """Weights that an earlier run has left.

    Attributes:
        run: id of a run that has succeeded.
        sha256: of its student.safetensors; the service fills it in, and refuses a job that gives another one.
        file: where that lies below the data directory; the service fills it in, whatever a job gives.
    """

    run: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Sha256 | None = Field(None, exclude_if=lambda given: given is None)
    file: RelativePath | None = Field(None, exclude_if=lambda given: given is None)


class FileWeights(Spec):
    """Weights of a file: safetensors, whose tensors have the names that the student gives them.

    Attributes:
        weights: path below the data root, of the file or of a folder with ``model.safetensors`` and ``config.json`` as
            timm and Hugging Face leave them (``retort`` as well, in model.zip).
        sha256: of the file; the service fills it in, and refuses a job that gives another one.
    """

    weights: RelativePath
    sha256: Sha256 | None = Field(None, exclude_if=lambda given: given is None)


class UploadedWeights(Spec):
    """Weights of a file that was uploaded to the service.

    Attributes:
        upload: id of the file (``POST /v1/student-files``).
        sha256: of the file; the service fills it in, and refuses a job that gives another one.
    """

    upload: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Sha256 | None = Field(None, exclude_if=lambda given: given is None)


def _tag(value: object) -> str:
    if isinstance(value, str):
        return "random"
    kinds = {"run": RunWeights, "upload": UploadedWeights}
    given = (
        tag for tag, kind in kinds.items() if isinstance(value, kind) or (isinstance(value, Mapping) and tag in value)
    )
    return next(given, "weights")


StoredInit: TypeAlias = RunWeights | FileWeights | UploadedWeights
"""Weights that lie in a file."""
InitialWeights: TypeAlias = Annotated[
    Annotated[Literal["random"], Tag("random")]
    | Annotated[RunWeights, Tag("run")]
    | Annotated[UploadedWeights, Tag("upload")]
    | Annotated[FileWeights, Tag("weights")],
    Discriminator(_tag),
]
