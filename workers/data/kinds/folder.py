"""Datasets in folders of image files, one folder per class."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names_option import OPTION, ClassNames, choose_names
from workers.data.confinement import root_folder
from workers.data.dataset_kind import Option, Source
from workers.data.files.folder_tree import (
    UNLABELLED,
    add_pictures,
    check_flat,
    class_folders,
    holds_pictures,
    may_hold_classes,
    pictures_beside_classes,
    split_folders,
)
from workers.data.files.linked_files import FoundFiles, linked_warnings
from workers.data.kinds.encoded import EncodedFiles
from workers.data.labelling.class_names import check_class_names, check_told_apart
from workers.errors import InvalidDataset
from workers.texts import composed, differences, listed

if TYPE_CHECKING:
    from workers.data.decoding.encoded_rows import EncodedRows
    from workers.events import Split


class FolderDataset(EncodedFiles):
    """``path/train/CLASS/*.jpg`` (or png ...), ``path/val/CLASS/*`` and ``path/test/CLASS/*``; classes alphabetically.

    The folders of the splits may be called ``train`` or ``training``, ``val``, ``valid`` or ``validation``, ``test`` or
    ``testing``, in any case; all but the training split may be missing. Without folders of these names,
    ``path/CLASS/*`` is the training split. Pictures without a label lie in the split's folder itself, if it has no
    class folders, or in ``_unlabelled`` beside them; they follow the others.

    Attributes:
        classes: ``folders`` takes the folders of a split as classes; ``nested`` all folders below it that hold
            pictures, each named by its path, as ``animal/cat``.
        class_names: of a dataset whose training pictures have no labels, or not all of them.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "folder": "`train/CLASS/*.jpg`, `test/CLASS/*` and, if there is one, `val/CLASS/*` (`valid`, `validation`; "
        "in any case); or `CLASS/*.jpg` without splits; classes alphabetically; pictures without labels in `train/` "
        "itself or in `train/_unlabelled/`"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedFiles.options,
        "classes": Option("Of a folder: its folders are the classes, or all folders below that hold pictures."),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = "folders of pictures"

    kind: Literal["folder"] = "folder"
    # Joined later, as ``Training.cuda_graph``.
    classes: Literal["folders", "nested"] = Field("folders", exclude_if=lambda given: given == "folders")
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with a training split, or with folders of pictures."""
        if entry.is_dir() and may_hold_classes(entry):
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """List class folders and pictures; none is opened."""
        path, root = self.resolve(data_root), root_folder(data_root)
        nested = self.classes == "nested"
        folders, beside = split_folders(path, root, nested=nested)
        classes = {split: class_folders(folder, root, nested=nested) for split, folder in folders.items()}
        if beside and not classes["train"] and not holds_pictures(folders["train"]):
            raise InvalidDataset(
                f"{folders['train']} holds no class folder, and beside it are {listed(map(repr, beside))}: if all are "
                "classes, put them into a folder 'train'"
            )
        without = {split: _without_labels(classes[split], folder) for split, folder in folders.items()}
        if without["train"] or self.class_names:
            names = choose_names(self.class_names, classes, path)
        else:
            names = tuple(sorted(classes["train"]))
        for split, folder in folders.items():
            check_told_apart(sorted(classes[split]), folder)
        # A class is spelt as train/ spells it: copied by another machine, test/ may be in another normal form.
        spelt = {composed(name): name for name in names}
        for split in folders:
            classes[split] = {spelt.get(composed(name), name): folder for name, folder in classes[split].items()}
            if not (without["train"] or without[split] or self.class_names):
                both = ((folders[each].name, classes[each]) for each in ("train", split))
                _check_same_classes(path, *both)
            elif unknown := sorted(classes[split].keys() - set(names)):
                raise InvalidDataset(
                    f"{path}: {folders[split].name}/ has the classes {listed(unknown)}, which {folders['train'].name}/ "
                    f"({listed(names)}) lacks: correct the folders"
                )
        if names or not all(without.values()):
            check_class_names(names, path)
        ignored: list[Path] = []
        found: dict[Split, FoundFiles] = {split: FoundFiles() for split in folders}
        counts: dict[Split, tuple[int, ...]] = {}
        labelled: dict[Split, int] = {}
        for split, files in found.items():
            add = functools.partial(add_pictures, root=root, found=files, ignored=ignored, nested=nested)
            of_split = classes[split]
            counts[split] = tuple(add(of_split[name]) if name in of_split else 0 for name in names)
            if (own := without[split]) is not None:
                labelled[split] = sum(counts[split])
                if own != folders[split]:
                    check_flat(own)
                add(own, what="folder of pictures without labels")
        left = [f"folders beside the splits were left out: {listed(beside)}"] if beside else []
        for split, folder in folders.items():
            loose = pictures_beside_classes(folder) if without[split] != folder else []
            ignored += loose
            left += [_loose_note(folder, len(loose))] if loose else []
        return Source(
            spec=self,
            path=path,
            samples={split: len(files.paths) for split, files in found.items()},
            classes=len(names),
            class_names=names,
            files={split: tuple(files.paths) for split, files in found.items()},
            class_counts=counts,
            labelled=labelled,
            ignored=tuple(ignored),
            notes=(*left, *linked_warnings(found, path)),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List in order of class name, then file name; pictures without a label last."""
        import numpy as np

        from workers.data.decoding.encoded_rows import rows_of_files
        from workers.unlabelled import with_unlabelled

        assert source.path is not None
        counts, files = source.class_counts[split], source.files[split]
        labels_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return rows_of_files(files, source.path, with_unlabelled(labels_N, len(files)))


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


def _loose_note(folder: Path, count: int) -> str:
    return (
        f"{count:,} pictures in {folder.name}/ itself, beside its class folders, were left out: to use them without "
        f"labels put them into {folder.name}/{UNLABELLED}/"
    )


def _without_labels(classes: dict[str, Path], folder: Path) -> Path | None:
    """Take the folder of the pictures without a label out of a split's class folders; None if all have one."""
    return classes.pop(UNLABELLED, None if classes else folder)
