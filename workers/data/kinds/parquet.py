"""Tables with pictures: parquet files, as on the Hugging Face hub, and folders that ``datasets`` has saved."""

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names_option import OPTION, ClassNames
from workers.data.confinement import root_folder
from workers.data.dataset_kind import SPLIT_NAMES, Option, Source
from workers.data.kinds.encoded import EncodedPictures
from workers.data.labelling.class_names import check_class_names
from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    from workers.data.decoding.encoded_rows import EncodedRows
    from workers.data.files.split_files import SplitFiles
    from workers.data.tabular.table_columns import LabelColumn
    from workers.data.tabular.table_features import Features
    from workers.data.tabular.tables import Table
    from workers.events import Split

_ColumnName = Annotated[str, Field(min_length=1, max_length=255)]


class ParquetDataset(EncodedPictures):
    """Tables with a column of encoded pictures and one of labels; needs the extra ``datasets`` (pyarrow).

    Pictures are a struct with ``bytes``, as Hugging Face has them, or binary; or paths of files below the dataset's
    folder, in a struct with ``path`` alone or in a column of texts. Labels are integers or strings. Names of
    classes come from the ``ClassLabel`` that Hugging Face notes in a file, or are the labels themselves.

    Attributes:
        path: a folder, a file or a pattern; see ``workers.data.files.split_files``.
        image: name of the column of pictures; None takes that which is noted as pictures, the only one that can hold
            them, or ``image``. A column of texts has to be named.
        label: name of the column of labels; None takes that which is noted as such, or ``label`` or ``labels``. A
            split without one has no labels; nor has a row with -1 or null.
        class_names: in the place of the table's, or of the labels.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "parquet": "parquet files of one split or, with `train`, `validation`, `test` among the words of their names, "
        "of several (`data/train-00000-of-00002.parquet`, `test/*.parquet`); a file, or a pattern with `*`, `{a,b}`, "
        "`{00..12}`",
        "arrow": "a folder that `save_to_disk` of Hugging Face's `datasets` has written",
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedPictures.options,
        "image": Option("Column of the pictures.", "the only one, or `image`"),
        "label": Option("Column of the labels.", "a `ClassLabel`, `label` or `labels`"),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = "parquet files"

    kind: Literal["parquet", "arrow"]
    image: _ColumnName | None = None
    label: _ColumnName | None = None
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a parquet file, a folder of them or of folders of splits, and a saved dataset."""
        splits = [name for names in SPLIT_NAMES.values() for name in names]
        folders = (entry, *(entry / below for below in ("data", *splits)))
        if entry.suffix == ".parquet" or any(next(folder.glob("*.parquet"), None) for folder in folders):
            yield cls(kind="parquet", path=name)
        if any((entry / file).is_file() for file in ("dataset_dict.json", "state.json")):
            yield cls(kind="arrow", path=name)

    def examine(self, data_root: Path) -> Source:
        """Read schemas, numbers of rows and the labels; no picture is read."""
        from workers.data.files.linked_files import linked_warnings
        from workers.data.files.named_files import NamedFiles
        from workers.data.tabular.table_columns import check_rows
        from workers.data.tabular.table_paths import find_pictures
        from workers.data.tabular.tables import check_installed

        check_installed()
        found = self._find(data_root)
        tables = self._tables(found)
        image, labels = self._columns(found, tables)
        for split, of_split in tables.items():
            check_rows(of_split, split, found.folder)
        named = NamedFiles(found.folder, root_folder(data_root))
        pictures = {split: find_pictures(of_split, image, named) for split, of_split in tables.items()}
        classes = labels.classes()
        if classes.names:
            check_class_names(classes.names, found.folder)
        counts = labels.check(classes)
        samples = {split: sum(table.rows for table in of_split) for split, of_split in tables.items()}
        labelled = {split: sum(counts.get(split, ())) for split in samples}
        return Source(
            spec=self,
            path=found.folder,
            samples=samples,
            classes=len(classes.names),
            class_names=classes.names,
            files=found.files,
            class_counts=counts,
            labelled={split: count for split, count in labelled.items() if count < samples[split]},
            notes=(*labels.notes, *classes.notes, *linked_warnings(pictures, found.folder)),
            pictures={split: tuple(files.paths) for split, files in pictures.items() if files.paths},
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List rows in the order of files, then rows."""
        import numpy as np

        from workers.data.decoding.encoded_rows import EncodedRows
        from workers.data.files.split_files import SplitFiles
        from workers.data.tabular.image_column import ImageColumn
        from workers.unlabelled import with_unlabelled

        assert source.path is not None
        found = SplitFiles(source.path, dict(source.files))
        tables = self._tables(found)
        image, labels = self._columns(found, tables)
        pictures = ImageColumn(tables[split], image, found.name, source.pictures.get(split, ()))
        ids = pictures.ids()
        labels_N = np.concatenate([np.empty(0, np.int64), *labels.pieces(split, labels.classes())])
        return EncodedRows(
            labels_N=with_unlabelled(labels_N, len(ids)),
            ids=ids,
            place=pictures.place,
            read=pictures.read,
            mean_bytes=pictures.mean_bytes,
        )

    def _find(self, data_root: Path) -> "SplitFiles":
        from workers.data.files.split_files import find_split_files
        from workers.data.tabular.saved_datasets import find_saved_files

        if self.kind == "arrow":
            return find_saved_files(self.path, data_root)
        return find_split_files(self.path, data_root, (".parquet",))

    def _tables(self, found: "SplitFiles") -> "dict[Split, list[Table]]":
        from workers.data.tabular.tables import open_arrow, open_parquet

        opened = open_arrow if self.kind == "arrow" else open_parquet
        return {split: [opened(path) for path in files] for split, files in found.files.items()}

    def _columns(self, found: "SplitFiles", tables: "Mapping[Split, list[Table]]") -> "tuple[str, LabelColumn]":
        """Name of the column of pictures, and the column of labels; the first file that has one tells.

        Raises:
            InvalidDataset: they cannot be told, or another file has others.
        """
        from workers.data.tabular.table_columns import LabelColumn
        from workers.data.tabular.table_features import Features

        every = [(split, Features(table), table) for split, of_split in tables.items() for table in of_split]
        image = every[0][1].image(self.image)
        columns = {(split, here.label(self.label, image)) for split, here, _ in every if here.image(image)}
        label = min((name for _, name in columns if name is not None), default=None)
        if self.label and label is None:
            raise every[0][1].lacking_label(self.label)
        if len({name for _, name in columns} - {None}) > 1 or len(columns) > len(tables):
            different = listed(sorted({str(name) for _, name in columns}))
            raise InvalidDataset(
                f"{found.folder}: the files have other columns of labels than each other, {different}: set 'label' "
                "to the one that all have"
            )
        labelled = {split: of_split for split, of_split in tables.items() if label and (split, label) in columns}
        names = {here.class_names(label): table for split, here, table in every if label and split in labelled}
        if len(names) > 1:
            one, other = list(names.values())[:2]
            raise InvalidDataset(
                f"{other.path} notes other names of classes than {one.path}: all files must have the same, in the same "
                "order"
            )
        noted = next(iter(names), None)
        notes = () if self.label else _passed_over(found, every, labelled, image)
        return image, LabelColumn(labelled, label or "label", self.class_names or noted, path=found.folder, notes=notes)


def _passed_over(
    found: "SplitFiles", every: "Iterable[tuple[Split, Features, Table]]", labelled: "Container[Split]", image: str
) -> tuple[str, ...]:
    """A sentence about the first file of each split without labels of which a column might hold some."""
    said: dict[Split, str] = {}
    for split, here, table in every:
        note = None if split in labelled else here.passed_over(image)
        if note is not None:
            said.setdefault(split, f"{found.name(table.path)}: {note}")
    return tuple(said.values())
