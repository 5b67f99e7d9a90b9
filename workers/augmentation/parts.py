"""Parts of a batch that are computed one after the other, to bound the memory of intermediates."""

from torch import Tensor

# Elements of one int32 intermediate. Half a MiB stays in a core's cache and below the size for which
# malloc asks for fresh pages (twice as fast as a whole batch); a GPU wants much work at once.
_CHUNK_CPU = 1 << 17
_CHUNK_DEVICE = 1 << 25


def parts(images: Tensor, per_sample: int) -> list[slice]:
    """Parts of a batch whose int32 intermediates, of so many elements for each sample, are not too large."""
    limit = _CHUNK_CPU if images.device.type == "cpu" else _CHUNK_DEVICE
    step = max(1, limit // per_sample)
    return [slice(start, start + step) for start in range(0, len(images), step)]
