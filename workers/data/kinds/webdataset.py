"""WebDataset shards: tar files whose members ``KEY.jpg`` and ``KEY.cls`` (or ``KEY.json``) are a sample."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names_option import OPTION, ClassNames
from workers.data.confinement import inside, root_folder
from workers.data.dataset_kind import Option, Source
from workers.data.kinds.encoded import EncodedFiles
from workers.data.labelling.class_names import check_class_names
from workers.errors import InvalidDataset
from workers.texts import listed, storable

if TYPE_CHECKING:
    from workers.data.decoding.encoded_rows import EncodedRows
    from workers.data.labelling.label_values import Classes, NamedClasses
    from workers.data.labelling.labels import Labels
    from workers.data.webdataset.shard import Shard
    from workers.events import Split

_MemberName = Annotated[str, Field(min_length=1, max_length=255)]
# Beside the shards: names of the classes in the order of their numbers.
_NAME_FILES = ("classes.txt", "classnames.txt", "classes.json")
_NAMES_MAX_BYTES = 16 << 20


class WebDataset(EncodedFiles):
    """Tar shards as the package ``webdataset`` writes them, read at random by an index of their headers.

    Samples are in the order of shards, then of the shard. A label is an integer or a name: the text of ``.cls``, or
    ``label`` or ``cls`` in ``.json``; a sample that has none, or -1, is a picture without a label. Names of the classes
    of integers may lie beside the shards.

    Attributes:
        path: a folder, a file or a pattern; see ``workers.data.files.split_files``.
        image: extension of the pictures; None takes the only picture of a sample.
        label: extension of the labels, or their key in ``.json``; None takes those above.
        class_names: in the place of those beside the shards, or of the labels.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "webdataset": "tar shards of samples `KEY.jpg` (or png ...) with `KEY.cls` or `KEY.json`, or without a label: "
        "a folder with "
        "`train`, `val`, `test` among the words of their names, a file, or a pattern such as "
        "`train-{000000..000127}.tar`; optionally `classes.txt` or `classes.json` beside them"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedFiles.options,
        "image": Option("Of tables: column of the pictures; of a webdataset: their extension.", "the only one"),
        "label": Option(
            "Of tables: column of the labels; of a webdataset: their extension, or their key in `.json`.",
            "`cls`, or the key `label`",
        ),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = "WebDataset shards"

    kind: Literal["webdataset"] = "webdataset"
    image: _MemberName | None = None
    label: _MemberName | None = None
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a tar file and a folder of them."""
        if entry.suffix == ".tar" or next(entry.glob("*.tar"), None) is not None:
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """Read the shards' headers and labels; no picture is read."""
        import numpy as np

        from workers.data.files.split_files import find_split_files
        from workers.data.labelling.labels import check_pieces
        from workers.unlabelled import count_classes

        found = find_split_files(self.path, data_root, (".tar",))
        shards = self._shards(found.files)
        for split, of_split in shards.items():
            if not sum(map(len, of_split)):
                raise InvalidDataset(f"{found.folder}: the shards of {split} have no sample: correct the path")
        if self.label is not None and not any(shard.labels for of_split in shards.values() for shard in of_split):
            first = next(shard for of_split in shards.values() for shard in of_split if shard.unlabelled)
            raise InvalidDataset(
                f"{first.path}: no sample has a label {self.label!r}; {storable(first.unlabelled)}: correct 'label', "
                "or leave it out"
            )
        names_file = _names_file(found.folder, root_folder(data_root))
        classes = _classes(shards, self.class_names, names_file)
        if classes.names:
            check_class_names(classes.names, found.folder)
        places = {split: f"{found.folder}: a shard of {split}" for split in shards}
        check_pieces(lambda split: _labels(shards[split], classes), classes.names, places, found.folder)
        counts = {
            split: count_classes(np.concatenate(_labels(of_split, classes)), len(classes.names))
            for split, of_split in shards.items()
        }
        samples = {split: sum(map(len, of_split)) for split, of_split in shards.items()}
        without = {split: sum(shard.unlabelled_count for shard in of_split) for split, of_split in shards.items()}
        beside = () if names_file is None else (names_file,)
        return Source(
            spec=self,
            path=found.folder,
            samples=samples,
            classes=len(classes.names),
            class_names=classes.names,
            files={split: (*files, *beside) for split, files in found.files.items()},
            class_counts={split: tuple(count.tolist()) for split, count in counts.items()},
            labelled={split: samples[split] - count for split, count in without.items() if count},
            notes=(*classes.notes, *_unlabelled_notes(shards), *_ignored(shards)),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List samples in the order of shards."""
        import numpy as np

        from workers.data.decoding.encoded_rows import EncodedRows
        from workers.data.webdataset.tar_rows import TarRows

        assert source.path is not None
        files = {
            each: tuple(f for f in of_split if f.name not in _NAME_FILES) for each, of_split in source.files.items()
        }
        names_file = next((file for file in source.files["train"] if file.name in _NAME_FILES), None)
        shards = self._shards(files)
        classes = _classes(shards, self.class_names, names_file)
        rows = TarRows(shards[split], source.path)
        return EncodedRows(
            labels_N=np.concatenate(_labels(shards[split], classes)),
            ids=rows.ids,
            place=rows.place,
            read=rows.read,
            files=rows.files,
            spans_N2=rows.spans_N2,
        )

    def _shards(self, files: "Mapping[Split, Sequence[Path]]") -> "dict[Split, list[Shard]]":
        from workers.data.webdataset.tar_index import index_shard

        return {
            split: [index_shard(path, self.image, self.label) for path in of_split] for split, of_split in files.items()
        }


def _labels(shards: "Sequence[Shard]", classes: "Classes | NamedClasses") -> "list[Labels]":
    """Class of each sample of each shard, or -1."""
    import numpy as np

    from workers.data.labelling.label_values import Classes
    from workers.unlabelled import NO_LABEL

    numbered = []
    for shard in shards:
        if isinstance(classes, Classes):
            of_labels = classes.number(_integers(shard.labels, shard.path), shard.path)
        else:
            of_labels = classes.number(shard.labels, shard.path)
        # A sample without a label has the number -1: the last.
        numbered.append(np.append(of_labels, NO_LABEL)[shard.labels_N])
    return numbered


def _integers(labels: "Iterable[str]", path: Path) -> "Labels":
    import numpy as np

    try:
        return np.array([int(label) for label in labels], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise InvalidDataset(
            f"{path}: labels of training samples are integers, here there is another: {error}"
        ) from error


def _classes(
    shards: "Mapping[Split, Sequence[Shard]]", given: "Sequence[str] | None", names_file: Path | None
) -> "Classes | NamedClasses":
    """Classes of the training shards, or of all where not all training samples have a label: of integers, or names."""
    import numpy as np

    from workers.data.labelling.label_values import (
        classes_of,
        classes_of_names,
        trained_names,
        trained_values,
        zero_based_note,
    )
    from workers.data.labelling.labels import check_labels
    from workers.unlabelled import NO_LABEL

    found: dict[Split, set[str | None]] = {
        split: {*(label for shard in of_split for label in shard.labels)} for split, of_split in shards.items()
    }
    for split, of_split in shards.items():
        if any(shard.unlabelled for shard in of_split):
            found[split].add(None)
    names = given or (None if names_file is None else _names(names_file))
    where = shards["train"][0].path.parent
    chosen = trained_names(found)
    if not all(label.removeprefix("-").isdecimal() and label.isascii() for label in chosen):
        return classes_of_names(chosen, names, where)
    telling: dict[Split, set[str | None]] = found if None in found["train"] else {"train": found["train"]}
    values = {
        split: np.unique(_integers((str(NO_LABEL) if label is None else label for label in of_split), where))
        for split, of_split in telling.items()
    }
    trained = trained_values(values, names, where)
    if names is not None:
        return classes_of(trained, names)
    check_labels(trained[trained < 0], int(np.sum(trained >= 0)), where)
    classes = classes_of(trained, None)
    return replace(classes, said=zero_based_note(values.values())) if None in found["train"] else classes


def _names_file(folder: Path, root: Path) -> Path | None:
    there = [folder / name for name in _NAME_FILES if (folder / name).is_file()]
    if len(there) > 1:
        raise InvalidDataset(f"{folder} has {there[0].name} and {there[1].name}: keep one of them")
    for path in there:
        inside(path, root)
    return there[0] if there else None


def _names(path: Path) -> tuple[str, ...]:
    """Names in label order: a line each, or JSON: a list, names by number, or numbers by name.

    Raises:
        InvalidDataset: none of these.
    """
    from workers.data.labelling.label_values import classes_of_names

    try:
        with path.open("rb") as file:
            text = file.read(_NAMES_MAX_BYTES + 1).decode()
        if len(text) > _NAMES_MAX_BYTES:
            raise ValueError(f"it has more than {_NAMES_MAX_BYTES} bytes")
        names = _listed_names(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidDataset(
            f"{path} cannot be read as names of classes: {error}; write a name in a line, in the order of the labels"
        ) from error
    return classes_of_names(names, names, path).names


def _listed_names(found: object) -> list[str]:
    """Names of classes in label order from JSON."""
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return found
    if not isinstance(found, dict):
        raise ValueError("it holds neither a list of names nor an object")
    if all(type(number) is int for number in found.values()):
        found = {str(number): name for name, number in found.items()}
    ordered = [found.get(str(number)) for number in range(len(found))]
    if not all(isinstance(name, str) for name in ordered):
        raise ValueError(f"its {len(found)} entries do not name the classes 0 to {len(found) - 1}")
    return [str(name) for name in ordered]


def _unlabelled_notes(shards: "Mapping[Split, Sequence[Shard]]") -> Iterator[str]:
    """Say where samples have no label, unless they are nothing but pictures."""
    for split, of_split in shards.items():
        folders = _folders(of_split) if not any(shard.labels for shard in of_split) else []
        if len(folders) > 1:
            yield storable(
                f"no sample of {split} has a label, and they lie in the folders {listed(folders)} of the tar files: if "
                "these are classes, unpack the files and register them as the kind folder"
            )
        first = next((shard for shard in of_split if shard.unlabelled), None)
        first = next((shard for shard in of_split if shard.has_more), first)
        if first is None or not (first.has_more or any(shard.labels for shard in of_split)):
            continue
        without, samples = sum(shard.unlabelled_count for shard in of_split), sum(map(len, of_split))
        yield storable(
            f"{without:,} of {samples:,} samples of {split} have no label, in {first.path.name} "
            f"{first.unlabelled}; a label is read from .cls, 'label' or 'cls' in .json, or what the field 'label' names"
        )


def _folders(shards: "Sequence[Shard]") -> list[str]:
    """Folders of the samples in their shards."""
    return sorted({key.rpartition("/")[0] for shard in shards for key in shard.key_list()})


def _ignored(shards: "Mapping[Split, Sequence[Shard]]") -> tuple[str, ...]:
    count = sum(shard.ignored for of_split in shards.values() for shard in of_split)
    return (f"{count} members of the tar files belong to no sample, or are links, and were left out",) if count else ()
