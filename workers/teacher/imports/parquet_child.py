"""Parquet files of logits, read in the confined child; see ``reading_child``. pyarrow is the extra ``datasets``.

Columns: ``logits``, a list of one length, or ``values`` and ``indices`` of top-k; ``sample_id``, text or integers, and
``view``, from 0. Without ``sample_id`` the rows of each view are its samples in their order.

Legend: R rows of the file, V views, N samples, K columns.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from workers.errors import InvalidLogits
from workers.teacher.imports.reading_child import check_float, check_names, to_float32, to_int32
from workers.teacher.imports.target import VIEWS_MAX, Target
from workers.texts import shortened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 1024
# Of the file's own description.
_THRIFT_BYTES = 64 << 20


def read_parquet(path: str, target: Target) -> JsonValue:
    """Read a Parquet file to the target; answers its description. Raises InvalidLogits."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        return {"missing": "pyarrow"}
    # Others reserve address space, which is what this process's memory is limited by.
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    try:
        with pq.ParquetFile(
            path, thrift_string_size_limit=_THRIFT_BYTES, thrift_container_size_limit=_THRIFT_BYTES
        ) as file:
            return _read(file, target)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise InvalidLogits(
            f"the Parquet file cannot be read ({type(error).__name__}: {shortened(str(error))}): write it once more"
        ) from error


def _read(file: "pq.ParquetFile", target: Target) -> JsonValue:
    names = set(file.schema_arrow.names)
    is_top_k = check_names(names, "columns")
    wanted = "values" if is_top_k else "logits"
    what = "the values" if is_top_k else "the logits"
    rows = file.metadata.num_rows
    place_R, shape, ids = _places(_small(file, "view", names), _ids(file, names), rows)
    start, dtype = 0, np.dtype(np.float32)
    for batch in file.iter_batches(_BATCH, columns=[wanted, "indices"] if is_top_k else [wanted], use_threads=False):
        values_bK = _lists(batch.column(wanted), wanted)
        if start == 0:
            check_float(values_bK.dtype, what)
            dtype = values_bK.dtype
            target.allocate((*shape, values_bK.shape[1]), ids, is_top_k=is_top_k)
        _check_length(values_bK, target, wanted)
        place_b = place_R[start : start + len(values_bK)]
        target.values_RK[place_b] = to_float32(values_bK, what, first=start)
        if target.indices_RK is not None:
            indices_bK = _lists(batch.column("indices"), "indices")
            _check_length(indices_bK, target, "indices")
            if indices_bK.dtype.kind not in "iu":
                raise InvalidLogits(f"the indices are {indices_bK.dtype}: save the numbers of classes as integers")
            target.indices_RK[place_b] = to_int32(indices_bK)
        start += len(values_bK)
    if start != rows or not rows:
        raise InvalidLogits(f"the Parquet file has {start} rows, and says {rows}: it is empty or damaged")
    return target.answer(dtype)


def _check_length(values_bK: NDArray[Any], target: Target, name: str) -> None:
    columns = target.values_RK.shape[1]
    if values_bK.shape[1] != columns:
        raise InvalidLogits(
            f"{name} has lists of {values_bK.shape[1]} and of {columns}: each row has one for each class"
        )


def _lists(column: "pa.Array", name: str) -> NDArray[Any]:
    """Values [b, K] of a column of lists. Raises InvalidLogits."""
    import pyarrow as pa

    is_list = any(test(column.type) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    if not is_list:
        raise InvalidLogits(f"the column {name!r} is {column.type}: it must hold a list of numbers in each row")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise InvalidLogits(f"the column {name!r} has rows without a value: leave these samples out")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or lengths[0] < 1:
        raise InvalidLogits(f"{name} has lists of {lengths[:4].tolist()} values: each row has one for each class")
    found: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found.reshape(-1, int(lengths[0]))


def _small(file: "pq.ParquetFile", name: str, names: "set[str]") -> list[Any] | None:
    """Values of a column of one number or text a row; None if there is none."""
    if name not in names:
        return None
    values: list[Any] = []
    for batch in file.iter_batches(_BATCH, columns=[name], use_threads=False):
        values += batch.column(name).to_pylist()
    return values


def _ids(file: "pq.ParquetFile", names: "set[str]") -> list[str] | None:
    found = _small(file, "sample_id", names)
    if found is None:
        return None
    if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in found):
        raise InvalidLogits("the column 'sample_id' must hold text or integers, one in each row")
    return list(map(str, found))


def _places(
    views: list[Any] | None, ids: list[str] | None, rows: int
) -> tuple[NDArray[np.int64], tuple[int, int], list[str] | None]:
    """Row of the target [R] of each row of the file, (V, N), and the ids of the samples. Raises InvalidLogits."""
    views = [0] * rows if views is None else views
    if any(not isinstance(view, int) or not 0 <= view < VIEWS_MAX for view in views):
        raise InvalidLogits(f"the column 'view' must hold the number of a view, 0 to {VIEWS_MAX - 1}")
    count = max(views, default=-1) + 1
    samples, left = divmod(rows, max(1, count))
    rows_of = Counter(views)
    if left or any(rows_of[view] != samples for view in range(count)):
        raise InvalidLogits(f"there are {rows} rows of {count} views: every view needs a row of every sample")
    seen = [0] * count
    if ids is None:
        places = []
        for view in views:
            places.append(view * samples + seen[view])
            seen[view] += 1
        return np.array(places, np.int64), (count, samples), None
    order: dict[str, int] = {}
    taken = set[tuple[int, str]]()
    for view, id in zip(views, ids, strict=True):
        if (view, id) in taken:
            raise InvalidLogits(f"the sample {shortened(repr(id))} has two rows of view {view}: leave one of them out")
        taken.add((view, id))
        order.setdefault(id, len(order))
    if len(order) != samples:
        raise InvalidLogits(
            f"{len(order)} samples have rows, {samples} of each view: each sample needs all {count} views"
        )
    places_R = np.array([view * samples + order[id] for view, id in zip(views, ids, strict=True)], np.int64)
    return places_R, (count, samples), list(order)
