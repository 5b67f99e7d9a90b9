"""Import of logits: rows of an upload become a complete cache, known by its content.

1. The split is decoded, unless it was (``prepare``), and the rows are matched with its samples (``matching``).
2. Classes are matched with the dataset's, and the kind of the values is found, as of a teacher's outputs.
3. A slice is judged by the labels (``doubts``).
4. Logits are written block by block, in the order of the samples. The cache is pinned: nothing can make it anew.

Of top-k the classes outside have equal parts of the probability that the k leave over. That is only known of
probabilities, so top-k of logits is refused.

Legend: V views, N samples, K columns, C classes of the dataset, B rows of a piece.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store import CacheSpec, CacheWriter, Catalog, Encoding, SparseEncoding
from store.spec import canonical_json
from workers.config.teacher import OutputKind, TeacherReading
from workers.data.holdout import hold_out
from workers.data.prepare import prepare
from workers.data.prepared import Dataset, row_ids
from workers.errors import ContractViolation, InvalidLogits
from workers.events import Split
from workers.teacher.class_columns import ClassColumns, match_classes
from workers.teacher.imports.doubts import Judgement, judge
from workers.teacher.imports.imported_specs import IMPORTED, imported_preprocessing, recipe_of_views
from workers.teacher.imports.matching import match_rows
from workers.teacher.imports.request import ImportedCache, ImportOptions, ImportTask
from workers.teacher.imports.uploaded_file import UploadedLogits
from workers.teacher.output_values import LOG_FLOOR, to_logits
from workers.teacher.preflight.output_kind import STORED, find_kind
from workers.teacher.preflight.rows import ROWS, slice_rows
from workers.texts import shortened
from workers.unlabelled import labels_to_store

# Rows that are looked at together: 16 MiB of float32.
_CELLS = 1 << 22
_FLOAT16_MAX = 65504.0
# Of a top-k row, the sum of its probabilities beyond 1 that is rounding.
_SUM_TOLERANCE = 0.01
_TAIL, _TAIL_TEMPERATURE = 16, 1.0
# A provenance has to stay below some 3,000 bytes.
_TOLD_MAX = 300
_TOP_K_KINDS: tuple[OutputKind, ...] = ("log_probabilities", "probabilities", "percent")

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class _Origin:
    """Origin of the values, for ``find_kind``."""

    output_dtype: str
    output: str = "the file"
    output_operator: str = ""


def import_cache(task: ImportTask) -> ImportedCache:
    """Import the rows of an upload.

    Raises:
        InvalidLogits: they are not those of the split's samples, or of other views or classes than is said.
        InvalidDataset: the dataset cannot be used.
        ContractViolation: classes that cannot be matched, a stated kind that the values are not of, or a doubt that
            ``accept_teacher`` does not insist against.
        DiskLow, store.QuotaExceeded, store.DiskFull.
    """
    options, upload = task.options, task.rows
    dataset = _prepared(task)
    if upload.views != options.views.count:
        raise InvalidLogits(
            f"the file has logits of {upload.views} views, and `views` says {options.views.count}: say in `views` "
            "which views they are of (augmentation, seed and count), or send those of one view"
        )
    row_N = match_rows(
        upload.ids(), upload.samples, row_ids(dataset), split=options.split, in_order=options.rows == "in_order"
    )
    source = _Logits.of(upload, options, dataset, row_N)
    sample_S = slice_rows(dataset.labels_N, max(dataset.classes, source.classes), ROWS)
    judged = judge(source.take(0, sample_S), dataset.numbered(source.classes), sample_S)
    doubts = (*source.refusals, *judged.doubts)
    if doubts and not options.accept_teacher:
        raise ContractViolation(f"{' '.join(doubts)} `accept_teacher` in the upload imports them all the same")
    accepted = tuple(f"{doubt} They are imported as they are, for the upload says accept_teacher" for doubt in doubts)
    warnings = (*accepted, *source.warnings, *judged.warnings)
    spec = _spec(options, upload, dataset, source)
    is_new = _write(task, spec, dataset, source, judged=judged)
    return ImportedCache(key=spec.key, is_new=is_new, accuracy=judged.accuracy, warnings=warnings)


def _prepared(task: ImportTask) -> Dataset:
    options, folders = task.options, task.folders
    split: Split = options.split if options.validation is None else "train"
    found = prepare(options.dataset, split, folders.data_root, folders.datasets)
    return found if options.validation is None else hold_out(found, options.validation, folders.datasets)


@dataclass(frozen=True)
class _Logits:
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
    ) -> "_Logits":
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
        columns = match_classes(reading, None, dataset.class_names, outputs)
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
        values_VNK = upload.values_VNK()
        some = values_VNK.reshape(-1, outputs)[:: max(1, upload.views * upload.samples // 4096)]
        found = find_kind(origin, np.array(some), options.output_kind)
        if found.kind != "logits":
            # A few rows have told, and all have to be of that kind.
            for piece in _pieces(values_VNK.reshape(-1, outputs)):
                find_kind(origin, piece, found.kind)
        return cls(upload, row_N, found.kind, columns, outputs, found.refusals, (*notes, *found.warnings))

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


def _pieces(values_RK: Rows) -> Iterator[Rows]:
    step = max(1, _CELLS // values_RK.shape[1])
    for start in range(0, len(values_RK), step):
        yield np.array(values_RK[start : start + step])


def _probabilities(values_BK: Rows, kind: OutputKind) -> NDArray[np.float64]:
    wide = values_BK.astype(np.float64)
    return np.exp(wide) if kind == "log_probabilities" else wide / 100 if kind == "percent" else wide


def _check_top_k(upload: UploadedLogits, kind: OutputKind, classes: int) -> None:
    """Refuse values that are no probabilities, and indices that are not different classes."""
    if kind not in _TOP_K_KINDS:
        raise InvalidLogits(
            f"output_kind is {kind!r}, and of the top {upload.columns} nobody knows what the other classes have: send "
            f"{', '.join(_TOP_K_KINDS)}, or whole rows"
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
        p_BK = _probabilities(values, kind)
        wrong = (p_BK < 0).any(axis=1) | (p_BK.sum(axis=1) > 1 + _SUM_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise InvalidLogits(
                f"row {first + row} (counted through all views) has probabilities that sum to {p_BK[row].sum():.4g}, "
                f"by output_kind {kind!r}: state the kind that the values are of ({', '.join(_TOP_K_KINDS)})"
            )
        first += len(indices)


def _whole_rows(p_BK: NDArray[np.float64], indices_BK: NDArray[np.int32], classes: int) -> NDArray[np.float64]:
    """Probabilities [B, N] of all classes: those outside the top k share what is left, equally."""
    left_B = np.maximum(1.0 - p_BK.sum(axis=1), 0.0) / max(1, classes - p_BK.shape[1])
    whole_BN = np.repeat(left_B[:, None], classes, axis=1)
    np.put_along_axis(whole_BN, indices_BK.astype(np.int64), p_BK, axis=1)
    found: NDArray[np.float64] = np.maximum(whole_BN, LOG_FLOOR)
    return found


def _spec(options: ImportOptions, upload: UploadedLogits, dataset: Dataset, source: _Logits) -> CacheSpec:
    """Specification of the cache, whose digest is that of all logits in the order of the samples.

    Raises:
        InvalidLogits: logits beyond the range of float16, or an encoding that saves nothing.
    """
    encoding = _encoding(options, upload, source.classes)
    dtype = "float32" if encoding != "dense" else options.dtype or ("float16" if upload.is_top_k else upload.dtype)
    header = {"format": "retort-logits-1", "shape": [upload.views, dataset.samples, source.classes]}
    digest = hashlib.sha256(canonical_json(header))
    largest = 0.0
    for logits_BC in _all_rows(upload.views, dataset.samples, source):
        digest.update(np.ascontiguousarray(logits_BC, "<f4").data)
        largest = max(largest, float(np.abs(logits_BC).max()))
    if dtype == "float16" and largest > _FLOAT16_MAX:
        raise InvalidLogits(
            f'the largest logit is {largest:.4g}, float16 ends at {_FLOAT16_MAX:g}: say `dtype` "float32", and look '
            "whether these are logits"
        )
    return CacheSpec(
        teacher_sha256=digest.hexdigest(),
        teacher_output=IMPORTED,
        output_kind=STORED[source.kind],
        dataset_fingerprint=dataset.fingerprint,
        split=options.split,
        samples=dataset.samples,
        classes=source.classes,
        preprocessing=imported_preprocessing(source.kind, upload.columns if upload.is_top_k else None),
        augmentation=recipe_of_views(options.views.augmentation).model_dump(mode="json"),
        augmentation_seed=options.views.seed,
        views=upload.views,
        dtype=dtype,
        encoding=encoding,
    )


def _encoding(options: ImportOptions, upload: UploadedLogits, classes: int) -> Encoding:
    wanted = options.encoding
    if isinstance(wanted, SparseEncoding) and (refusal := wanted.refusal(classes)):
        raise InvalidLogits(f"encoding: {refusal}")
    if wanted is not None or not upload.is_top_k or options.split != "train":
        return wanted or "dense"
    # The sample stands for classes that all have the same probability: a few are as good as many.
    sparse = SparseEncoding(kind="sparse", top=upload.columns, tail=_TAIL, temperature=_TAIL_TEMPERATURE)
    return "dense" if sparse.refusal(classes) else sparse


def _all_rows(views: int, samples: int, source: _Logits) -> Iterator[Rows]:
    step = max(1, _CELLS // max(source.outputs, source.classes))
    for view in range(views):
        for start in range(0, samples, step):
            yield source.take(view, np.arange(start, min(start + step, samples)))


def _write(task: ImportTask, spec: CacheSpec, dataset: Dataset, source: _Logits, *, judged: Judgement) -> bool:
    """Write, finish and pin the cache; returns whether it was not complete before."""
    options, root = task.options, task.folders.caches
    provenance = {
        IMPORTED: {
            "source": options.source,
            "file_sha256": task.sha256,
            "rows": options.rows,
            "accuracy": judged.accuracy,
            "accepted": [shortened(doubt, _TOLD_MAX) for doubt in (*source.refusals, *judged.doubts)],
            "warnings": [shortened(warning, _TOLD_MAX) for warning in (*source.warnings, *judged.warnings)[:3]],
        }
    }
    catalog = Catalog(root)
    with catalog.reserve([spec], task.quota_bytes, provenance):
        writer = CacheWriter(root, spec)
        is_new = not writer.is_complete
        for block in writer.pending_blocks() if is_new else ():
            view, start, stop = spec.block_range(block)
            logits_BC = source.take(view, np.arange(start, stop))
            labels_B = labels_to_store(np.asarray(dataset.labels_N[start:stop]), logits_BC)
            writer.write_block(block, logits_BC, labels_B)
        if is_new:
            writer.finish()
        # Nothing evicts what nobody can make anew.
        catalog.pin(spec.key)
        catalog.touch(spec.key)
    return is_new
