"""Request of an import, as the importing process takes it, and its outcome. Light: the API process makes it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from store import Encoding
from workers.config.dataset import DatasetSpec
from workers.config.task import Folders
from workers.config.teacher import CLASSES_MAX, ClassName, ClassNames, Column, OutputKind
from workers.config.views import Views
from workers.data.preparation.holdout_spec import Holdout
from workers.events import Split
from workers.spec import Flag, Spec
from workers.teacher.imports.uploaded_file import UploadedLogits

SOURCE_MAX = 1000


class ImportOptions(Spec):
    """Statements of a client about logits that it imports.

    Attributes:
        dataset: whose samples they are of.
        split: of it.
        validation: the holdout of the jobs that will use them, where ``split`` is the validation split that it cuts.
        rows: ``by_id`` matches rows by sample ids; ``in_order`` takes row k for sample k of the split.
        output_kind: of the values; None is told by them, as a teacher's.
        class_names: of the columns, in their order, or of the numbers in ``indices``; matched with the dataset's.
        class_map: for classes of the dataset whose name is none of these: the name there, or the number of the column.
        views: whose logits they are: by default of the plain pictures.
        dtype: None keeps float16, and takes float32 for the rest.
        encoding: None is dense, and of top-k sparse where that saves room; of other splits than train always dense.
        accept_teacher: import them although their accuracy, or the order of their classes, is doubted.
        prepare: decode the dataset within the request, however large it is.
        source: where they come from, for people.
    """

    dataset: DatasetSpec
    split: Split = "train"
    validation: Holdout | None = None
    rows: Literal["by_id", "in_order"] = "by_id"
    output_kind: OutputKind | None = None
    class_names: ClassNames | None = None
    class_map: Annotated[dict[str, ClassName | Column], Field(max_length=CLASSES_MAX)] = {}
    views: Views = Views()
    dtype: Literal["float16", "float32"] | None = None
    encoding: Encoding | None = None
    accept_teacher: Flag = False
    prepare: Flag = False
    source: Annotated[str, Field(max_length=SOURCE_MAX)] = ""

    @property
    def decoded_split(self) -> Split:
        """Split that has to be decoded: a holdout is cut from train."""
        return self.split if self.validation is None else "train"

    @model_validator(mode="after")
    def _measured_is_plain_and_exact(self) -> "ImportOptions":
        if self.split != "train" and self.views.augmentation.recipe != "none":
            raise ValueError(
                f"split is {self.split}, which is measured on plain pictures, and views has the recipe "
                f"{self.views.augmentation.recipe}: import logits of the plain pictures, without `views`"
            )
        if self.split != "train" and self.encoding not in (None, "dense"):
            encoding = self.encoding if isinstance(self.encoding, str) else self.encoding.kind
            raise ValueError(
                f"split is {self.split}, on which results are measured, and encoding {encoding!r} is lossy: leave "
                'encoding out, or say "dense"'
            )
        if self.validation is not None and self.split != "validation":
            raise ValueError(f"validation cuts a validation split, and split is {self.split}: leave validation out")
        return self


class ImportTask(Spec):
    """Rows that were read from an upload, and what becomes of them.

    Attributes:
        sha256: of the upload.
        quota_bytes: see ``store.Catalog.reserve``.
    """

    options: ImportOptions
    rows: UploadedLogits
    sha256: str
    folders: Folders
    quota_bytes: int = 0


class ImportedCache(Spec):
    """Outcome of an import.

    Attributes:
        key: of the cache.
        is_new: whether it was not there before.
        accuracy: top-1 of the logits on labelled samples, of the worst view; None without any.
        warnings: sentences for a person.
    """

    key: str
    is_new: bool
    accuracy: float | None
    warnings: tuple[str, ...]
