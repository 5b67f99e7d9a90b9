"""Datasets in folders of image files, one folder per class."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names import check_class_names, check_told_apart
from workers.data.confinement import root_folder
from workers.data.folder_tree import add_pictures, class_folders, may_hold_classes, split_folders
from workers.data.kinds.base import Option, Source
from workers.data.kinds.encoded import EncodedFiles
from workers.data.linked_files import FoundFiles, linked_warnings
from workers.errors import InvalidDataset
from workers.texts import composed, differences, listed

if TYPE_CHECKING:
    from workers.data.encoded_rows import EncodedRows
    from workers.events import Split


class FolderDataset(EncodedFiles):
    """``path/train/CLASS/*.jpg`` (or png ...), ``path/val/CLASS/*`` and ``path/test/CLASS/*``; classes alphabetically.

    The folders of the splits may be called ``train`` or ``training``, ``val``, ``valid`` or ``validation``, ``test`` or
    ``testing``, in any case; all but the training split may be missing. Without folders of these names,
    ``path/CLASS/*`` is the training split.

    Attributes:
        classes: ``folders`` takes the folders of a split as classes; ``nested`` all folders below it that hold
            pictures, each named by its path, as ``animal/cat``.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "folder": "`train/CLASS/*.jpg`, `test/CLASS/*` and, if there is one, `val/CLASS/*` (`valid`, `validation`; "
        "in any case); or `CLASS/*.jpg` without splits; classes alphabetically"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedFiles.options,
        "classes": Option("Of a folder: its folders are the classes, or all folders below that hold pictures."),
    }
    sought: ClassVar[str] = "folders of pictures"

    kind: Literal["folder"] = "folder"
    # Joined later, as ``Training.cuda_graph``.
    classes: Literal["folders", "nested"] = Field("folders", exclude_if=lambda given: given == "folders")

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with a training split, or with folders of pictures."""
        if entry.is_dir() and may_hold_classes(entry):
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """List class folders and pictures; none is opened."""
        path, root = self.resolve(data_root), root_folder(data_root)
        folders, beside = split_folders(path, root)
        nested = self.classes == "nested"
        classes = {split: class_folders(folder, root, nested=nested) for split, folder in folders.items()}
        if beside and not classes["train"]:
            raise InvalidDataset(
                f"{folders['train']} holds no class folder, and beside it are {listed(map(repr, beside))}: if all are "
                "classes, put them into a folder 'train'"
            )
        names = sorted(classes["train"])
        for split, folder in folders.items():
            check_told_apart(sorted(classes[split]), folder)
        # A class is spelt as train/ spells it: copied by another machine, test/ may be in another normal form.
        spelt = {composed(name): name for name in names}
        for split in folders:
            classes[split] = {spelt.get(composed(name), name): folder for name, folder in classes[split].items()}
            _check_same_classes(path, (folders["train"].name, classes["train"]), (folders[split].name, classes[split]))
        check_class_names(names, path)
        ignored: list[Path] = []
        found: dict[Split, FoundFiles] = {split: FoundFiles() for split in folders}
        counts: dict[Split, tuple[int, ...]] = {
            split: tuple(add_pictures(classes[split][name], root, files, ignored, nested=nested) for name in names)
            for split, files in found.items()
        }
        left = [f"folders beside the splits were left out: {listed(beside)}"] if beside else []
        return Source(
            spec=self,
            path=path,
            samples={split: len(files.paths) for split, files in found.items()},
            classes=len(names),
            class_names=tuple(names),
            files={split: tuple(files.paths) for split, files in found.items()},
            class_counts=counts,
            ignored=tuple(ignored),
            notes=(*left, *linked_warnings(found, path)),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List in order of class name, then file name."""
        import numpy as np

        from workers.data.encoded_rows import rows_of_files

        assert source.path is not None
        counts = source.class_counts[split]
        labels_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return rows_of_files(source.files[split], source.path, labels_N)


def _check_same_classes(path: Path, *splits: tuple[str, Mapping[str, Path]]) -> None:
    """Refuse splits, each a folder's name and its classes, with other classes than each other."""
    for (here, classes), (there, others) in (splits, splits[::-1]):
        only = sorted(classes.keys() - others.keys())
        if only:
            alike = differences([*only, *sorted(others.keys() - classes.keys())])
            raise InvalidDataset(
                f"{path}: {here}/ has the classes {listed(only)}, which {there}/ lacks; both must "
                f"hold the same class folders{''.join(f' ({found})' for found in alike[:1])}"
            )
