"""Registry of the dataset kinds.

To add one, write its class in a file of this folder and add it here: see "Add a dataset kind" in workers/README.md.
"""

from workers.data.dataset_kind import DatasetKind
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.manifest import ManifestDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.kinds.parquet import ParquetDataset
from workers.data.kinds.stl10 import Stl10Dataset
from workers.data.kinds.svhn import SvhnDataset
from workers.data.kinds.torchvision_sets import TorchvisionDataset
from workers.data.kinds.webdataset import WebDataset

# By the value of ``kind``. The order is that of help texts, tables and error messages.
KINDS: dict[str, type[DatasetKind]] = {
    kind: cls
    for cls in (
        DigitsDataset,
        TorchvisionDataset,
        SvhnDataset,
        Stl10Dataset,
        FolderDataset,
        ManifestDataset,
        NpzDataset,
        ParquetDataset,
        WebDataset,
    )
    for kind in cls.kinds
}


def kind_classes() -> tuple[type[DatasetKind], ...]:
    """Each class once, in the registry's order."""
    return tuple(dict.fromkeys(KINDS.values()))


def built_in_kinds() -> tuple[str, ...]:
    """The kinds that need nothing below the data root."""
    return tuple(kind for kind, cls in KINDS.items() if not cls.sought)
