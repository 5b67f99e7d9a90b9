"""Routes of teachers, files of students, datasets and caches, a method of the client each."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from service.client import documents
from service.client.asynchronous.connection import ServiceConnection
from service.client.asynchronous.download import download_file
from service.client.transport import IMPORT_S, LONG_S, path_part, upload_s


class ResourceRoutes:
    """Methods of the client about teachers, files of students, datasets and caches."""

    _connection: ServiceConnection

    async def upload_teacher(
        self,
        path: Path,
        *,
        name: str | None = None,
        preprocessing: Mapping[str, object] | str | None = None,
        output: str | None = None,
        output_kind: str | None = None,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        class_map: Mapping[str, str | int] | None = None,
        input_values: Mapping[str, bool | int | float] | None = None,
        data: Path | None = None,
    ) -> documents.Teacher:
        """Upload an ONNX file, streamed from disk; the same file again gives the same teacher.

        Args:
            path: the ONNX file, or a zip or tar archive of one and the files of its weights.
            name: for people; the file's name by default.
            preprocessing: how a picture becomes the network's input (size, mean, std, ...); or a name, "imagenet", or
                the document of timm's config.json or Hugging Face's preprocessor_config.json.
            output: which output holds the logits; needed when there are several.
            output_kind: ``"logits"``, ``"log_probabilities"``, ``"probabilities"``, ``"sigmoid"`` or ``"percent"``;
                told by the values by default.
            class_names: of the output's columns, in their order, or by their numbers; matched with a dataset's.
            class_map: the teacher's name or column of classes that a dataset calls otherwise.
            input_values: of scalar inputs beside the pictures.
            data: the file of its weights, if they lie beside it (external data).
        """
        as_json = {
            "preprocessing": preprocessing,
            "class_names": class_names,
            "class_map": class_map,
            "input_values": input_values,
        }
        fields = {"name": name or path.stem, "output": output, "output_kind": output_kind}
        fields |= {field: json.dumps(value) for field, value in as_json.items() if value is not None}
        with ExitStack() as opened:
            files = {
                field: (file.name, opened.enter_context(file.open("rb")), "application/octet-stream")
                for field, file in (("file", path), ("data", data))
                if file is not None
            }
            return await self._connection.typed(
                "POST",
                "/v1/teachers",
                documents.Teacher,
                data={field: value for field, value in fields.items() if value is not None},
                files=files,
                timeout=upload_s(path, data),
                repeat=False,
            )

    def teachers(self, *, name: str | None = None) -> AsyncIterator[documents.Teacher]:
        """List the teachers; ``name`` keeps those whose name holds it."""
        return self._connection.pages("/v1/teachers", documents.Teacher, {"name": name} if name else {})

    async def teacher(self, teacher_id: str) -> documents.Teacher:
        """Get a teacher."""
        return await self._connection.typed("GET", f"/v1/teachers/{path_part(teacher_id)}", documents.Teacher)

    async def delete_teacher(self, teacher_id: str) -> None:
        """Delete a teacher; refused while a job that has not ended uses it."""
        await self._connection.done("DELETE", f"/v1/teachers/{path_part(teacher_id)}", repeat=False)

    async def upload_student_file(self, path: Path, *, name: str | None = None) -> documents.StudentFile:
        """Upload a file of a student: weights, or a program, which is its own architecture.

        Args:
            path: a safetensors file, with which a student begins by ``{"init": {"upload": ID}}``; or a program of
                torch.export (.pt2), which is the student ``uploaded/ID``. It is streamed from disk; the same bytes
                again give the same file.
            name: for people; the file's name by default.
        """
        with path.open("rb") as file:
            return await self._connection.typed(
                "POST",
                "/v1/student-files",
                documents.StudentFile,
                data={"name": name or path.stem},
                files={"file": (path.name, file, "application/octet-stream")},
                timeout=upload_s(path),
                repeat=False,
            )

    def student_files(self, *, name: str | None = None) -> AsyncIterator[documents.StudentFile]:
        """List the uploaded files of students; ``name`` keeps those whose name holds it."""
        return self._connection.pages("/v1/student-files", documents.StudentFile, {"name": name} if name else {})

    async def student_file(self, student_file_id: str) -> documents.StudentFile:
        """Get an uploaded file of a student."""
        return await self._connection.typed(
            "GET", f"/v1/student-files/{path_part(student_file_id)}", documents.StudentFile
        )

    async def delete_student_file(self, student_file_id: str) -> None:
        """Delete an uploaded file of a student; refused while a job that has not ended needs it."""
        await self._connection.done("DELETE", f"/v1/student-files/{path_part(student_file_id)}", repeat=False)

    async def preview_deletion(self, kind: str, id: str) -> documents.Deletion:
        """Say what a deletion would free (``frees_bytes``), or why it is refused now (``refused``).

        Args:
            kind: ``"jobs"``, ``"runs"``, ``"datasets"``, ``"teachers"``, ``"student-files"`` or ``"caches"``.
            id: of one of these.
        """
        path = f"/v1/{path_part(kind)}/{path_part(id)}/deletion"
        return await self._connection.typed("GET", path, documents.Deletion)

    async def create_dataset(self, name: str, spec: Mapping[str, object]) -> documents.Dataset:
        """Register a dataset below the service's data root by name."""
        body = {"name": name, "spec": spec}
        return await self._connection.typed("POST", "/v1/datasets", documents.Dataset, json=body, repeat=False)

    def datasets(self, *, name: str | None = None) -> AsyncIterator[documents.Dataset]:
        """List the registered datasets; ``name`` keeps those whose name holds it."""
        return self._connection.pages("/v1/datasets", documents.Dataset, {"name": name} if name else {})

    async def dataset(self, dataset_id: str) -> documents.Dataset:
        """Get a dataset."""
        return await self._connection.typed("GET", f"/v1/datasets/{path_part(dataset_id)}", documents.Dataset)

    def bad_pictures(self, dataset_id: str, *, split: str | None = None) -> AsyncIterator[documents.BadPicture]:
        """List the pictures of a dataset that cannot be decoded, as jobs have found: split, sample_id, reason."""
        params = {} if split is None else {"split": split}
        return self._connection.pages(
            f"/v1/datasets/{path_part(dataset_id)}/bad-pictures", documents.BadPicture, params
        )

    async def delete_dataset(self, dataset_id: str) -> None:
        """Delete the name of a dataset and its decoded copy; the pictures stay. Refused while a live job uses it."""
        await self._connection.done("DELETE", f"/v1/datasets/{path_part(dataset_id)}", repeat=False)

    def caches(self, *, imported: bool | None = None) -> AsyncIterator[documents.Cache]:
        """List the caches of teacher logits, complete or not.

        Args:
            imported: True keeps those whose logits were imported, False the others.
        """
        params = {} if imported is None else {"imported": "true" if imported else "false"}
        return self._connection.pages("/v1/caches", documents.Cache, params)

    async def cache(self, key: str) -> documents.CacheDetail:
        """Get a cache by its key, with its use."""
        return await self._connection.typed("GET", f"/v1/caches/{path_part(key)}", documents.CacheDetail)

    async def import_cache(
        self,
        path: Path,
        dataset: Mapping[str, object] | str,
        *,
        split: Literal["train", "validation", "test"] = "train",
        source: str = "",
        in_order: bool = False,
        output_kind: str | None = None,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        class_map: Mapping[str, str | int] | None = None,
        views: Mapping[str, object] | None = None,
        validation: Mapping[str, object] | None = None,
        dtype: Literal["float16", "float32"] | None = None,
        encoding: Mapping[str, object] | str | None = None,
        accept_teacher: bool = False,
        prepare: bool = False,
    ) -> documents.ImportedCache:
        """Import logits from anywhere as a cache, for ``caches`` of a job; the same logits again are the same cache.

        Args:
            path: npy, npz or Parquet of ``logits`` [views, samples, classes] and ``sample_ids``, as ``export_cache``
                writes it; or of top-k, ``values`` and ``indices``.
            dataset: its id, name or description.
            split: of the dataset, whose samples they are of.
            source: where they come from, for people.
            in_order: row k is sample k of the split; otherwise rows are matched by sample ids.
            output_kind, class_names, class_map: as of ``upload_teacher``.
            views: of the jobs that will use them; the plain pictures by default.
            validation: of these jobs, if it cuts the split.
            dtype, encoding: of the stored rows.
            accept_teacher: import them although their accuracy or the order of their classes is doubted.
            prepare: have a large dataset that was not decoded yet decoded within this call.
        """
        as_json = {
            "dataset": None if isinstance(dataset, str) else dataset,
            "class_names": class_names,
            "class_map": class_map,
            "views": views,
            "validation": validation,
            "encoding": None if isinstance(encoding, str) else encoding,
        }
        fields = {
            "dataset": dataset if isinstance(dataset, str) else None,
            "encoding": encoding if isinstance(encoding, str) else None,
            "split": split,
            "source": source or None,
            "rows": "in_order" if in_order else None,
            "output_kind": output_kind,
            "dtype": dtype,
            "accept_teacher": "true" if accept_teacher else None,
            "prepare": "true" if prepare else None,
        }
        fields |= {field: json.dumps(value) for field, value in as_json.items() if value is not None}
        with path.open("rb") as file:
            return await self._connection.typed(
                "POST",
                "/v1/caches",
                documents.ImportedCache,
                data={field: value for field, value in fields.items() if value is not None},
                files={"file": (path.name, file, "application/octet-stream")},
                timeout=IMPORT_S,
                repeat=False,
            )

    async def verify_cache(self, key: str) -> documents.CacheReport:
        """Verify a cache: the service reads every checksum and statistic again, which takes long for a large one."""
        path = f"/v1/caches/{path_part(key)}/verify"
        return await self._connection.typed("POST", path, documents.CacheReport, timeout=LONG_S)

    async def export_cache(
        self,
        key: str,
        path: Path,
        *,
        format: Literal["npz", "parquet", "zarr"] = "npz",
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        """Export a cache to one file: logits, statistics, sample ids and labels.

        Args:
            key: of the cache.
            path: the file to write, replaced if it exists; its folder must exist.
            format: ``zarr`` is a zip of the cache as it is stored.
            on_bytes: called with the number of bytes there so far.

        Raises:
            DamagedDownload: the SHA-256 differs from the service's; the bytes are deleted.
        """
        url = f"/v1/caches/{path_part(key)}/export?format={format}"
        # The service writes the file first, which takes long for a large cache.
        head = await self._connection.send("HEAD", url, timeout=LONG_S)
        digest, size_bytes = head.headers["etag"].strip('"'), int(head.headers["content-length"])
        await download_file(self._connection, url, path, digest=digest, size_bytes=size_bytes, on_bytes=on_bytes)
        return path

    async def delete_cache(self, key: str) -> None:
        """Delete a cache; refused while it is pinned or a job that is being worked on uses it."""
        await self._connection.done("DELETE", f"/v1/caches/{path_part(key)}", repeat=False)

    async def pin_cache(self, key: str) -> documents.Cache:
        """Pin a cache: keep it from eviction and deletion."""
        return await self._connection.typed("POST", f"/v1/caches/{path_part(key)}/pin", documents.Cache)

    async def unpin_cache(self, key: str) -> None:
        """Unpin a cache, so that it can be evicted and deleted again."""
        await self._connection.done("DELETE", f"/v1/caches/{path_part(key)}/pin")
