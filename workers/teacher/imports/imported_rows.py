"""Logits of a split's samples, made of an upload's rows: classes matched, values turned into logits, top-k filled up.

Of top-k the classes outside have equal parts of the probability that the k leave over. That is only known of
probabilities, so top-k of logits is refused; so is a row whose other classes would have more than one of the k.

Legend: N samples, K columns of the upload, B rows of a piece, C classes of the dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.config.teacher import SOFTMAX_KINDS, OutputKind, TeacherReading
from workers.data.preparation.prepared import Dataset
from workers.errors import InvalidLogits
from workers.teacher.class_columns import ClassColumns, match_classes
from workers.teacher.imports.request import ImportOptions
from workers.teacher.imports.uploaded_file import UploadedLogits
from workers.teacher.output_values import LOG_FLOOR, to_logits
from workers.teacher.preflight.output_kind import STORED, SUM_TOLERANCE, find_kind
from workers.teacher.wording import IMPORT

# Values that are looked at together: 16 MiB of float32.
_CELLS = 1 << 22
# Rows that tell the kind; then all are looked at.
_SOME_ROWS = 4096
# Of a top-k row, what is rounding (float16 at most): of its sum, and of each value, relative to it.
_SUM_TOLERANCE = 0.01
# Of whole rows that are logits, the share that may sum to 1 by chance: of two classes in float16 nearly one in 100.
_MIXED_SHARE = 0.02

Rows = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class _Origin:
    """Origin of the values, for ``find_kind``."""

    output_dtype: str
    output: str = "the file"
    output_operator: str = ""


@dataclass(frozen=True)
class ImportedRows:
    """Logits of the samples of a split, made of an upload's rows.

    Attributes:
        kind: of the values.
        classes: C.
        refusals, warnings: sentences about the kind and the classes.
    """

    upload: UploadedLogits
    row_N: NDArray[np.int64]
    kind: OutputKind
    columns: ClassColumns
    outputs: int
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls, upload: UploadedLogits, options: ImportOptions, dataset: Dataset, row_N: NDArray[np.int64]
    ) -> "ImportedRows":
        """Match the classes and find the kind; every value is looked at."""
        reading = TeacherReading(class_names=options.class_names, class_map=options.class_map)
        outputs = upload.columns
        if upload.is_top_k:
            outputs = len(options.class_names or dataset.class_names)
            if not outputs:
                raise InvalidLogits(
                    "neither the dataset nor the upload names the classes, and top-k does not tell how many there are: "
                    "state `class_names`"
                )
        columns = match_classes(reading, None, dataset.class_names, outputs, wording=IMPORT)
        notes = [columns.note] if columns.note else []
        if upload.is_top_k:
            kind = options.output_kind or "log_probabilities"
            _check_top_k(upload, kind, outputs)
            notes.append(
                f"of each row {upload.columns} of {outputs} classes are known: the others have equal parts of the "
                "probability that is left"
            )
            return cls(upload, row_N, kind, columns, outputs, (), tuple(notes))
        origin = _Origin(upload.dtype)
        values_RK = upload.values_VNK().reshape(-1, outputs)
        rows = min(len(values_RK), _SOME_ROWS, max(1, _CELLS // outputs))
        some = values_RK[np.linspace(0, len(values_RK) - 1, rows).astype(np.int64)]
        found = find_kind(origin, some, options.output_kind, wording=IMPORT)
        refusals = found.refusals
        if found.kind != "logits":
            # A few rows have told, and all have to be of that kind.
            for piece in _pieces(values_RK):
                find_kind(origin, piece, found.kind, wording=IMPORT)
        elif options.output_kind is None and not refusals:
            refusals = _mixed(values_RK, SUM_TOLERANCE[upload.dtype])
        return cls(upload, row_N, found.kind, columns, outputs, refusals, (*notes, *found.warnings))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.outputs if self.columns.columns is None else len(self.columns.columns)

    def take(self, view: int, sample_B: NDArray[np.int64]) -> Rows:
        """Logits [B, C] of samples of the split."""
        row_B = self.row_N[sample_B]
        values_BK = np.array(self.upload.values_VNK()[view][row_B])
        indices_VNK = self.upload.indices_VNK()
        if indices_VNK is None:
            return to_logits(values_BK, STORED[self.kind], self.columns.columns)
        whole_BN = _whole_rows(_probabilities(values_BK, self.kind), indices_VNK[view][row_B], self.outputs)
        # Of all columns in another order nothing is left to renormalise; of some, log p is.
        if self.columns.columns is None:
            return np.log(whole_BN).astype(np.float32)
        return to_logits(whole_BN.astype(np.float32), "log_probabilities", self.columns.columns)

    def pieces(self, samples: int) -> Iterator[Rows]:
        """Logits [B, C] of all views of so many samples, in their order."""
        step = max(1, _CELLS // max(self.outputs, self.classes))
        for view in range(self.upload.views):
            for start in range(0, samples, step):
                yield self.take(view, np.arange(start, min(start + step, samples)))


def _pieces(values_RK: NDArray[Number]) -> Iterator[NDArray[Number]]:
    step = max(1, _CELLS // values_RK.shape[1])
    for start in range(0, len(values_RK), step):
        yield np.array(values_RK[start : start + step])


def _mixed(values_RK: Rows, tolerance: float) -> tuple[str, ...]:
    """A refusal of rows taken for logits many of which are probabilities, or their logarithms; none if few are."""
    count, first, start = 0, -1, 0
    for piece in _pieces(values_RK):
        wide = piece.astype(np.float64)
        is_one = (wide >= 0).all(axis=1) & (np.abs(wide.sum(axis=1) - 1) <= tolerance)
        logs = (wide <= 0).all(axis=1)
        is_one[logs] = np.abs(np.exp(wide[logs]).sum(axis=1) - 1) <= tolerance
        if first < 0 and is_one.any():
            first = start + int(is_one.argmax())
        count += int(is_one.sum())
        start += len(piece)
    if count <= _MIXED_SHARE * len(values_RK):
        return ()
    return (
        f"{count:,} of {len(values_RK):,} rows (the first is row {first}, counted through all views) are probabilities "
        "or their logarithms, and the others are not: send all rows of one kind, or state `output_kind`.",
    )


def _probabilities(values_BK: Rows, kind: OutputKind) -> NDArray[np.float64]:
    wide = values_BK.astype(np.float64)
    return np.exp(wide) if kind == "log_probabilities" else wide / 100 if kind == "percent" else wide


def _check_top_k(upload: UploadedLogits, kind: OutputKind, classes: int) -> None:
    """Refuse values that are no probabilities, and indices that are not different classes."""
    if kind not in SOFTMAX_KINDS:
        raise InvalidLogits(
            f"output_kind is {kind!r}, and of the top {upload.columns} nobody knows what the other classes have: send "
            f"{', '.join(SOFTMAX_KINDS)}, or whole rows"
        )
    indices_VNK = upload.indices_VNK()
    assert indices_VNK is not None
    if upload.columns > classes:
        raise InvalidLogits(f"each row has {upload.columns} classes, and there are {classes}")
    first = 0
    shape = (-1, upload.columns)
    for indices, values in zip(
        _pieces(indices_VNK.reshape(shape)), _pieces(upload.values_VNK().reshape(shape)), strict=True
    ):
        if indices.min() < 0 or indices.max() >= classes:
            raise InvalidLogits(f"an index is {indices.max()}, and the classes are 0 to {classes - 1}")
        ordered = np.sort(indices, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            raise InvalidLogits(f"row {first + int(twice.argmax())} (counted through all views) has a class twice")
        _check_probabilities(_probabilities(values, kind), kind, classes, first)
        first += len(indices)


def _check_probabilities(p_BK: NDArray[np.float64], kind: OutputKind, classes: int, first: int) -> None:
    """Refuse rows that are not the largest probabilities of as many classes; ``first`` numbers their rows."""
    others = classes - p_BK.shape[1]
    sum_B = p_BK.sum(axis=1)
    wrong = (p_BK < 0).any(axis=1) | (sum_B > 1 + _SUM_TOLERANCE)
    # None of the others has more than the least of the k: so much is left for all of them at most.
    room_B = others * p_BK.min(axis=1) * (1 + _SUM_TOLERANCE) + _SUM_TOLERANCE
    wrong |= 1 - sum_B > room_B
    if not wrong.any():
        return
    row = int(wrong.argmax())
    least, left = p_BK[row].min(), 1 - sum_B[row]
    if least < 0 or left < 0:
        why = "beyond 1, or one is negative"
    elif others:
        why = f"and the {others} other classes would have {left / others:.3g} each, the least here has {least:.3g}"
    else:
        why = "and all classes are there, so that they have to sum to 1"
    raise InvalidLogits(
        f"row {first + row} (counted through all views) has probabilities that sum to {sum_B[row]:.4g}, by output_kind "
        f"{kind!r}, {why}: state the kind that the values are of ({', '.join(SOFTMAX_KINDS)}) and send them unrounded; "
        "of logits send the log-softmax over all classes, or whole rows"
    )


def _whole_rows(p_BK: NDArray[np.float64], indices_BK: NDArray[np.int32], classes: int) -> NDArray[np.float64]:
    """Probabilities [B, N] of all classes: those outside the top k share what is left, equally."""
    left_B = np.maximum(1.0 - p_BK.sum(axis=1), 0.0) / max(1, classes - p_BK.shape[1])
    whole_BN = np.repeat(left_B[:, None], classes, axis=1)
    np.put_along_axis(whole_BN, indices_BK.astype(np.int64), p_BK, axis=1)
    found: NDArray[np.float64] = np.maximum(whole_BN, LOG_FLOOR)
    return found
