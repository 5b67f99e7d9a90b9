"""Import of logits: rows of an upload become a complete cache, known by its content.

1. The split is decoded, unless it was (``prepare``), and the rows are matched with its samples (``matching``).
2. Classes are matched with the dataset's, and the kind of the values is found, as of a teacher's outputs.
3. A slice of every view is judged by the labels (``doubts``).
4. Logits are written block by block, in the order of the samples. The cache is pinned: nothing can make it anew.

Legend: B rows of a piece, C classes of the dataset.
"""

import hashlib

import numpy as np
from pydantic import JsonValue

from store import CacheSpec, CacheWriter, Catalog, Encoding, SparseEncoding
from store.spec import canonical_json
from workers.data.preparation.holdout import hold_out
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset, row_ids
from workers.errors import ContractViolation, InvalidLogits
from workers.teacher.imports.doubts import Judgement, judge
from workers.teacher.imports.imported_rows import ImportedRows
from workers.teacher.imports.imported_specs import IMPORTED, imported_preprocessing, recipe_of_views
from workers.teacher.imports.matching import match_rows
from workers.teacher.imports.request import ImportedCache, ImportOptions, ImportTask
from workers.teacher.imports.uploaded_file import UploadedLogits
from workers.teacher.preflight.output_kind import STORED
from workers.teacher.preflight.rows import ROWS, slice_rows
from workers.texts import shortened
from workers.unlabelled import labels_to_store

_FLOAT16_MAX = 65504.0
_TAIL, _TAIL_TEMPERATURE = 16, 1.0
# A provenance has to stay below some 3,000 bytes.
_TOLD_MAX = 300


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
    source = ImportedRows.of(upload, options, dataset, row_N)
    sample_S = slice_rows(dataset.labels_N, max(dataset.classes, source.classes), ROWS)
    judged = judge(source.take, upload.views, dataset.numbered(source.classes), sample_S)
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
    found = prepare(options.dataset, options.decoded_split, folders.data_root, folders.datasets)
    return found if options.validation is None else hold_out(found, options.validation, folders.datasets)


def _spec(options: ImportOptions, upload: UploadedLogits, dataset: Dataset, source: ImportedRows) -> CacheSpec:
    """Specification of the cache, whose digest is that of all logits in the order of the samples.

    Raises:
        InvalidLogits: logits beyond the range of float16, or an encoding that saves nothing.
    """
    encoding = _encoding(options, upload, source.classes)
    dtype = "float32" if encoding != "dense" else options.dtype or ("float16" if upload.is_top_k else upload.dtype)
    header: JsonValue = {"format": "retort-logits-1", "shape": [upload.views, dataset.samples, source.classes]}
    digest = hashlib.sha256(canonical_json(header))
    largest = 0.0
    for logits_BC in source.pieces(dataset.samples):
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


def _write(task: ImportTask, spec: CacheSpec, dataset: Dataset, source: ImportedRows, *, judged: Judgement) -> bool:
    """Write, finish and pin the cache; returns whether it was not complete before."""
    options, root = task.options, task.folders.caches
    provenance: dict[str, JsonValue] = {
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
