"""Routes of teachers, datasets and caches, a method of the client each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.client.transport import LONG_S, Document, ServiceConnection, path_part


class ResourceRoutes:
    """Methods of ``Client`` about teachers, datasets and caches."""

    _connection: ServiceConnection

    def upload_teacher(
        self,
        path: Path,
        *,
        name: str | None = None,
        preprocessing: Mapping[str, object] | None = None,
        output: str | None = None,
    ) -> Document:
        """Upload an ONNX file, streamed from disk; the same file again gives the same teacher.

        Args:
            path: the ONNX file.
            name: for people; the file's name by default.
            preprocessing: how a picture becomes the network's input (size, mean, std, ...).
            output: which output holds the logits; needed when there are several.
        """
        fields = {"name": name or path.stem}
        if preprocessing is not None:
            fields["preprocessing"] = json.dumps(preprocessing)
        if output is not None:
            fields["output"] = output
        with path.open("rb") as stream:
            return self._connection.json(
                "POST",
                "/v1/teachers",
                data=fields,
                files={"file": (path.name, stream, "application/octet-stream")},
                timeout=LONG_S,
                repeat=False,
            )

    def teachers(self) -> Iterator[Document]:
        """List the teachers."""
        return self._connection.pages("/v1/teachers")

    def teacher(self, teacher_id: str) -> Document:
        """Get a teacher."""
        return self._connection.json("GET", f"/v1/teachers/{path_part(teacher_id)}")

    def delete_teacher(self, teacher_id: str) -> None:
        """Delete a teacher; refused while a job that has not ended uses it."""
        self._connection.done("DELETE", f"/v1/teachers/{path_part(teacher_id)}", repeat=False)

    def preview_deletion(self, kind: str, id: str) -> Document:
        """Say what a deletion would free (``frees_bytes``), or why it is refused now (``refused``).

        Args:
            kind: ``"jobs"``, ``"runs"``, ``"datasets"``, ``"teachers"`` or ``"caches"``.
            id: of one of these.
        """
        return self._connection.json("GET", f"/v1/{path_part(kind)}/{path_part(id)}/deletion")

    def create_dataset(self, name: str, spec: Mapping[str, object]) -> Document:
        """Register a dataset below the service's data root by name."""
        body = {"name": name, "spec": spec}
        return self._connection.json("POST", "/v1/datasets", json=body, repeat=False)

    def datasets(self) -> Iterator[Document]:
        """List the registered datasets."""
        return self._connection.pages("/v1/datasets")

    def dataset(self, dataset_id: str) -> Document:
        """Get a dataset."""
        return self._connection.json("GET", f"/v1/datasets/{path_part(dataset_id)}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete the name of a dataset and its decoded copy; the pictures stay. Refused while a live job uses it."""
        self._connection.done("DELETE", f"/v1/datasets/{path_part(dataset_id)}", repeat=False)

    def caches(self) -> Iterator[Document]:
        """List the caches of teacher logits, complete or not."""
        return self._connection.pages("/v1/caches")

    def cache(self, key: str) -> Document:
        """Get a cache by its key."""
        return self._connection.json("GET", f"/v1/caches/{path_part(key)}")

    def verify_cache(self, key: str) -> Document:
        """Verify a cache: the service reads every checksum and statistic again, which takes long for a large one."""
        path = f"/v1/caches/{path_part(key)}/verify"
        return self._connection.json("POST", path, timeout=LONG_S)

    def delete_cache(self, key: str) -> None:
        """Delete a cache; refused while it is pinned or a job that is being worked on uses it."""
        self._connection.done("DELETE", f"/v1/caches/{path_part(key)}", repeat=False)

    def pin_cache(self, key: str) -> Document:
        """Pin a cache: keep it from eviction and deletion."""
        return self._connection.json("POST", f"/v1/caches/{path_part(key)}/pin")

    def unpin_cache(self, key: str) -> None:
        """Unpin a cache, so that it can be evicted and deleted again."""
        self._connection.done("DELETE", f"/v1/caches/{path_part(key)}/pin")
