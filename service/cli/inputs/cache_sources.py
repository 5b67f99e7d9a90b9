"""Sources of caches for the commands, as documents of the API: a service, or a folder of this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from service.cli.base import BadInput
from service.client.client import Client
from service.client.transport import Document

if TYPE_CHECKING:
    from store.catalog import CacheEntry
    from store.export import ExportFormat

_PREFIX_MIN = 4


class CacheSource(Protocol):
    """Source of caches, as documents of the API."""

    def list(self, *, imported: bool = False) -> list[Document]:
        """All caches, or those alone whose logits were imported."""
        ...

    def resolve(self, prefix: str) -> str: ...
    def get(self, key: str) -> Document: ...
    def verify(self, key: str) -> Document: ...
    def pin(self, key: str) -> None: ...
    def unpin(self, key: str) -> None: ...
    def delete(self, key: str) -> None: ...
    def export(self, key: str, path: Path, format: "ExportFormat") -> None: ...


class ServiceCaches:
    """Caches of a service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, imported: bool = False) -> "Documents":
        return list(self._client.caches(imported=True if imported else None))

    def resolve(self, prefix: str) -> str:
        if len(prefix) == 64:
            return prefix
        if len(prefix) < _PREFIX_MIN:
            raise BadInput(f"{prefix!r} is too short for a key: give {_PREFIX_MIN} digits or more")
        keys = [item["key"] for item in self._client.caches() if item["key"].startswith(prefix)]
        if len(keys) != 1:
            raise BadInput(
                f"{prefix} starts {len(keys)} keys, give more of one: {', '.join(keys)}"
                if keys
                else f"no cache of {self._client.base_url} has a key that starts with {prefix}"
            )
        return str(keys[0])

    def get(self, key: str) -> Document:
        return self._client.cache(key)

    def verify(self, key: str) -> Document:
        return self._client.verify_cache(key)

    def pin(self, key: str) -> None:
        self._client.pin_cache(key)

    def unpin(self, key: str) -> None:
        self._client.unpin_cache(key)

    def delete(self, key: str) -> None:
        self._client.delete_cache(key)

    def export(self, key: str, path: Path, format: "ExportFormat") -> None:
        self._client.export_cache(key, path, format=format)


class FolderCaches:
    """Caches below a service's folder on this machine."""

    def __init__(self, data_dir: Path) -> None:
        # zarr loads slowly, and most commands never need it.
        from store import Catalog

        self._data_dir = data_dir
        self._catalog = Catalog(data_dir / "caches")

    def list(self, *, imported: bool = False) -> "Documents":
        from workers.teacher.imports.imported_specs import is_imported

        return [_document(entry) for entry in self._catalog.list() if not imported or is_imported(entry.spec)]

    def resolve(self, prefix: str) -> str:
        return self._catalog.resolve(prefix)

    def get(self, key: str) -> Document:
        return _document(self._catalog.get(key))

    def verify(self, key: str) -> Document:
        from service.api.schemas.caches import CacheReport

        return CacheReport.of(self._catalog.verify(key)).model_dump(mode="json")

    def pin(self, key: str) -> None:
        self._catalog.pin(key)

    def unpin(self, key: str) -> None:
        self._catalog.unpin(key)

    def delete(self, key: str) -> None:
        self._catalog.delete(key)

    def export(self, key: str, path: Path, format: "ExportFormat") -> None:
        from service.operations.exports import facts_of
        from store.export import export_cache

        facts = facts_of(self._data_dir / "datasets", self._catalog.spec(key))
        export_cache(self._catalog.root, key, format, path, facts=facts)


def _document(entry: "CacheEntry") -> Document:
    from service.api.schemas.caches import Cache

    return Cache.of(entry).model_dump(mode="json")


# Inside the classes above, ``list`` is the method.
Documents = list[Document]
