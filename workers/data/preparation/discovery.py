"""Examination of a dataset: where it lies and what is in it, without decoding a picture.

The API process uses this to refuse a dataset while the client still waits, ``workers.data.preparation.prepare`` to know
what to decode. It reads directory listings, file headers and labels only, so it loads neither torch nor PIL; what only
decoding can show (a truncated JPEG) is found later, when the dataset is prepared.
"""

from pathlib import Path

from workers.data.confinement import named_below
from workers.data.dataset_kind import DatasetKind, Source
from workers.data.webdataset import kept_indexes


def examine(spec: DatasetKind, data_root: Path, work_dir: Path | None = None) -> Source:
    """Look at a dataset: cheap, nothing is decoded.

    Args:
        work_dir: of the prepared datasets; what was read of large tar files is kept there. None keeps nothing.

    Raises:
        InvalidDataset: the path leaves ``data_root``, files are missing or have the wrong headers, or
            a folder's classes differ between the splits or are empty. Files are named relative to ``data_root``.
    """
    with named_below(data_root), kept_indexes.kept_in(work_dir):
        return spec.examine(data_root)
