"""Tables with pictures: parquet files, as on the Hugging Face hub, and folders that ``datasets`` has saved."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names import check_class_names
from workers.data.kinds.base import SPLIT_NAMES, Option, Source
from workers.data.kinds.encoded import EncodedPictures
from workers.errors import InvalidDataset

if TYPE_CHECKING:
    from workers.data.encoded_rows import EncodedRows
    from workers.data.split_files import SplitFiles
    from workers.data.table_columns import LabelColumn
    from workers.data.tables import Table
    from workers.events import Split

_ColumnName = Annotated[str, Field(min_length=1, max_length=255)]


class ParquetDataset(EncodedPictures):
    """Tables with a column of encoded pictures and one of labels; needs the extra ``datasets`` (pyarrow).

    Pictures are a struct with ``bytes``, as Hugging Face has them, or binary; labels are integers or strings. Names of
    classes come from the ``ClassLabel`` that Hugging Face notes in a file, or are the labels themselves.

    Attributes:
        path: a folder, a file or a pattern; see ``workers.data.split_files``.
        image: name of the column of pictures; None takes that which is noted as pictures, the only one that can hold
            them, or ``image``.
        label: name of the column of labels, likewise.
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
        "label": Option("Column of the labels.", "the only one, or `label`"),
    }
    sought: ClassVar[str] = "parquet files"

    kind: Literal["parquet", "arrow"]
    image: _ColumnName | None = None
    label: _ColumnName | None = None

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
        from workers.data.table_columns import check_groups
        from workers.data.tables import check_installed

        check_installed()
        found = self._find(data_root)
        tables = self._tables(found)
        image, labels = self._columns(found, tables)
        classes = labels.classes()
        check_class_names(classes.names, found.folder)
        counts = labels.check(classes)
        for of_split in tables.values():
            check_groups(of_split, image)
        return Source(
            spec=self,
            path=found.folder,
            samples={split: sum(table.rows for table in of_split) for split, of_split in tables.items()},
            classes=len(classes.names),
            class_names=classes.names,
            files=found.files,
            class_counts=counts,
            notes=classes.notes,
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List rows in the order of files, then rows."""
        import numpy as np

        from workers.data.encoded_rows import EncodedRows
        from workers.data.split_files import SplitFiles
        from workers.data.table_columns import ImageColumn

        assert source.path is not None
        found = SplitFiles(source.path, dict(source.files))
        tables = self._tables(found)
        image, labels = self._columns(found, tables)
        pictures = ImageColumn(tables[split], image, found.name)
        return EncodedRows(
            labels_N=np.concatenate(list(labels.pieces(split, labels.classes()))),
            ids=pictures.ids(),
            place=pictures.place,
            read=pictures.read,
        )

    def _find(self, data_root: Path) -> "SplitFiles":
        from workers.data.saved_datasets import find_saved_files
        from workers.data.split_files import find_split_files

        if self.kind == "arrow":
            return find_saved_files(self.path, data_root)
        return find_split_files(self.path, data_root, (".parquet",))

    def _tables(self, found: "SplitFiles") -> "dict[Split, list[Table]]":
        from workers.data.tables import open_arrow, open_parquet

        opened = open_arrow if self.kind == "arrow" else open_parquet
        return {split: [opened(path) for path in files] for split, files in found.files.items()}

    def _columns(self, found: "SplitFiles", tables: "Mapping[Split, list[Table]]") -> "tuple[str, LabelColumn]":
        """Name of the column of pictures, and the column of labels; the first training file tells.

        Raises:
            InvalidDataset: they cannot be told, or another file has others.
        """
        from workers.data.table_columns import LabelColumn
        from workers.data.table_features import Features

        first = Features(tables["train"][0])
        image, label = first.image(self.image), first.label(self.label)
        names = first.class_names(label)
        for table in (table for of_split in tables.values() for table in of_split):
            here = Features(table)
            here.image(image)
            here.label(label)
            if here.class_names(label) != names:
                raise InvalidDataset(
                    f"{table.path} notes other names of classes than {tables['train'][0].path}: all files must have "
                    "the same, in the same order"
                )
        return image, LabelColumn(tables, label, names, found.folder)
