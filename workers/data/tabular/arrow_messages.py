"""Messages of an Arrow stream: whether the buffers of one are packed, from its metadata alone. Light.

pyarrow unpacks packed buffers when it reads a batch, as large as these say, and tells neither before. The metadata of a
message is a flatbuffer; this reads the few fields that are needed.

Source: ``Message.fbs`` of the Arrow columnar format, "Encapsulated message format" and "Compression".
"""

import struct
from typing import Final

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
# Numbers of the fields in their tables.
_HEADER_TYPE, _HEADER, _DICTIONARY_DATA, _COMPRESSION = 1, 2, 1, 3
# As Arrow 0.17 noted it.
_EARLY: Final = b"ARROW:experimental_compression"


def is_packed(metadata: bytes) -> bool:
    """Whether the buffers of a message are packed (LZ4, ZSTD).

    Raises:
        ValueError: the metadata is damaged.
    """
    try:
        message = _target(metadata, 0)
        kind = _field(metadata, message, _HEADER_TYPE)
        if not kind or metadata[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
            return False
        batch = _target(metadata, _field(metadata, message, _HEADER))
        if metadata[kind] == _DICTIONARY_BATCH:
            batch = _target(metadata, _field(metadata, batch, _DICTIONARY_DATA))
        return _field(metadata, batch, _COMPRESSION) > 0 or _EARLY in metadata
    except (struct.error, IndexError) as error:
        raise ValueError("the metadata of a message is damaged") from error


def _target(data: bytes, place: int) -> int:
    """Place that an offset at a place leads to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Place of a field of a table; 0 where it has none."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, fields + entry)[0])
    return table + offset if offset else 0
