"""Refusal of work within a request that would have to decode a large dataset first."""

import json

from service.errors import Conflict
from service.settings import Settings
from workers.config.dataset import DatasetSpec
from workers.data.preparation.decoded import known_split
from workers.data.preparation.discovery import examine
from workers.events import Split

# Of more pictures, or more bytes of files, decoding takes more than the seconds that a request may.
_SAMPLES_MAX = 100_000
_BYTES_MAX = 256 << 20


def check_prepared(dataset: DatasetSpec, split: Split, settings: Settings) -> None:
    """Refuse a split that was not decoded and is too large to be decoded within a request.

    Raises:
        Conflict: naming the command that decodes it.
        InvalidDataset: it cannot be used.
    """
    source = examine(dataset, settings.data_root, settings.datasets_dir)
    if split not in source.samples or known_split(settings.datasets_dir, source.key(), split) is not None:
        return
    samples, size_bytes = source.samples[split], source.size_bytes(split)
    if samples <= _SAMPLES_MAX and size_bytes <= _BYTES_MAX:
        return
    spec = json.dumps(dataset.model_dump(mode="json", exclude_defaults=True) | {"kind": dataset.kind})
    raise Conflict(
        f"the {split} split was not decoded yet ({samples:,} pictures, {size_bytes:,} bytes), which takes too long for "
        f"a request: run `retort datasets prepare '{spec}' --split {split}` where the service runs, as its user, or "
        "let a job on this dataset do it, and import the logits then; or say `prepare` in the upload, before the file, "
        "and the request waits for it"
    )
