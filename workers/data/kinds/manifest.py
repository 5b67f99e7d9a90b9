"""Datasets of image files that a CSV or JSONL file lists."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names_option import OPTION, ClassNames
from workers.data.confinement import resolve, root_folder
from workers.data.dataset_kind import SPLITS, Option, Source
from workers.data.files.faults import Faults
from workers.data.files.linked_files import FoundFiles, linked_warnings
from workers.data.files.manifest_rows import CSV_SUFFIXES, DEFAULT_LABEL, JSONL_SUFFIXES, Columns, read_rows
from workers.data.files.named_files import NamedFiles
from workers.data.kinds.encoded import EncodedFiles
from workers.data.labelling.class_names import check_class_names
from workers.data.labelling.manifest_labels import ManifestLabels
from workers.errors import InvalidDataset
from workers.spec import RelativePath
from workers.texts import listed

if TYPE_CHECKING:
    from workers.data.decoding.encoded_rows import EncodedRows
    from workers.events import Split

ColumnName = Annotated[str, Field(min_length=1, max_length=255)]


class ManifestDataset(EncodedFiles):
    """A ``.csv``, ``.tsv`` or ``.jsonl`` of pictures: path, label and, optionally, split of each; in the file's order.

    Labels are names or integers; classes are in alphabetical order, or in that of the integers. A row whose label is
    missing, empty or -1 is a picture without one.

    Attributes:
        root: folder below the data root that the paths are relative to; None is the manifest's own.
        path_column, label_column, split_column: names of the columns, or of the keys of a JSON object. Without one for
            the split, all pictures are of the training split.
        class_names: in the order of the labels, where these are integers, or of the teacher's outputs.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "manifest": "a `.csv` (`.tsv`) or `.jsonl` that lists image files: `path`, `label` (names or integers; empty "
        "or -1: a picture without one) and, optionally, `split` (`train`, `val`, `test`)"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedFiles.options,
        "root": Option(
            "Of a manifest: the folder below the data root that its paths start from.", "the manifest's own"
        ),
        "path_column": Option("Of a manifest: the column of paths."),
        "label_column": Option("Of a manifest: the column of labels."),
        "split_column": Option("Of a manifest: the column of splits, which may be missing."),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = "manifests of pictures"

    kind: Literal["manifest"] = "manifest"
    root: RelativePath | None = None
    path_column: ColumnName = "path"
    label_column: ColumnName = DEFAULT_LABEL
    split_column: ColumnName = "split"
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a file of such a name."""
        if entry.suffix.lower() in (*CSV_SUFFIXES, *JSONL_SUFFIXES):
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """Read the manifest, and look whether each file is there; no picture is opened."""
        path, root = self.resolve(data_root), root_folder(data_root)
        if not path.is_file():
            raise InvalidDataset(f"{path} is not a file; a manifest is a .csv, .tsv or .jsonl that lists pictures")
        folder = path.parent if self.root is None else resolve(self.root, data_root)
        faults = Faults()
        columns = Columns(self.path_column, self.label_column, self.split_column)
        found = _Listing(folder, root, faults)
        for row in read_rows(path, folder, columns, faults):
            found.add(row.line, row.path, row.label, row.split)
        faults.check(path)
        if "train" not in found.files:
            raise InvalidDataset(
                f"{path} lists no picture of the split train; it has {listed(found.files) or 'no rows'}"
            )
        names, notes = found.labels.number(self.class_names, path)
        if names:
            check_class_names(names, path)
        files = {split: found.files[split] for split in SPLITS if split in found.files}
        labels = {split: found.labels.of(split) for split in files}
        counts = {split: found.labels.counts(of_split) for split, of_split in labels.items()}
        labelled = {split: sum(of_split) for split, of_split in counts.items()}
        return Source(
            spec=self,
            path=folder,
            samples={split: len(of_split.paths) for split, of_split in files.items()},
            classes=len(names),
            class_names=names,
            files={split: tuple(of_split.paths) for split, of_split in files.items()},
            class_counts=counts,
            labelled={split: count for split, count in labelled.items() if count < len(labels[split])},
            lists=(path,),
            labels=labels,
            notes=(*notes, *linked_warnings(files, folder)),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List in the order of the manifest."""
        import numpy as np

        from workers.data.decoding.encoded_rows import rows_of_files

        assert source.path is not None
        return rows_of_files(source.files[split], source.path, np.asarray(source.labels[split], dtype=np.int64))


class _Listing:
    """Pictures that a manifest lists, by split.

    Args:
        folder: that paths are relative to.
        root: the data root, its links followed.
        faults: counts the rows whose files are not there, or were listed before.
    """

    def __init__(self, folder: Path, root: Path, faults: Faults) -> None:
        self.files: dict[Split, FoundFiles] = {}
        self.labels = ManifestLabels()
        self._named, self._faults = NamedFiles(folder, root), faults
        self._seen: set[str] = set()

    def add(self, line: int, path: str, label: str | None, split: "Split") -> None:
        """Add a picture, or count what is wrong with it."""
        if path in self._seen:
            self._faults.add("files are listed twice", line, path)
            return
        inode = self._named.inode(path)
        if inode is None:
            self._faults.add(f"files are not there (below {self._named.folder})", line, path)
            return
        self._seen.add(path)
        files = self.files.setdefault(split, FoundFiles())
        files.paths.append(self._named.folder / path)
        files.inodes.append(inode)
        self.labels.add(split, label)
