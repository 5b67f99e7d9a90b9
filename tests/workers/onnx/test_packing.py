"""Weights beside an ONNX file: put into it as they were saved, or refused as strictly as the file itself."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.support import onnx_models
from workers.errors import InvalidTeacher
from workers.onnx.checks.check import check_onnx
from workers.onnx.uploads.packing import is_archive, pack
from workers.onnx.uploads.packing_child import answer, fill

LIMIT = 1 << 20
LARGE = 2048  # most bytes of one ONNX file, in place of 2 GiB
Files = dict[str, bytes]
Change = Callable[[onnx.ModelProto, dict[str, str]], None]


def two_files(name: str = "m.onnx.data", change: Change | None = None) -> tuple[bytes, bytes, onnx.ModelProto]:
    """A model, the bytes of its weights, and the same as one file; ``change`` is of the model and a weight's place."""
    whole = onnx_models.random_linear()
    model = onnx.load_from_string(whole.SerializeToString())
    data = b""
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor).tobytes()
        place = {"location": name, "offset": str(len(data)), "length": str(len(values))}
        data += values
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        if tensor.name == "weight" and change is not None:
            change(model, place)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    return model.SerializeToString(), data, whole


def zipped(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def packed(
    folder: Path, content: bytes, data: bytes | None = None, name: str | None = None, *, single_max: int = LIMIT
) -> bytes:
    """The one file, made in this process. Raises InvalidTeacher."""
    path = folder / "upload"
    path.write_bytes(content)
    if data is not None:
        (folder / "data").write_bytes(data)
    descriptor = os.memfd_create("test")
    try:
        os.ftruncate(descriptor, LIMIT)
        sent = str(path), None if data is None else str(folder / "data"), name
        limits = {"descriptor": descriptor, "bytes_max": LIMIT, "single_max": single_max}
        found: Any = answer(*sent, **limits)
        if found.get("is_large"):
            found = fill(*sent, **limits, size=found["size"])
        if "error" in found:
            raise InvalidTeacher(found["error"])
        return os.pread(descriptor, found["size"], 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["m.onnx.data", None])
def test_packing_puts_the_weights_into_the_file(name: str | None, tmp_path: Path) -> None:
    model, data, whole = two_files()
    assert onnx.load_from_string(packed(tmp_path, model, data, name)) == whole


@pytest.mark.parametrize("archive", [zipped, tarred, lambda files: gzip.compress(tarred(files))])
@pytest.mark.parametrize("folder", ["", "export/"])
def test_packing_reads_archives(archive: Callable[[Files], bytes], folder: str, tmp_path: Path) -> None:
    """With what macOS and people put beside."""
    model, data, whole = two_files()
    files = {
        f"{folder}m.onnx": model,
        f"{folder}m.onnx.data": data,
        f"{folder}README.md": b"hello",
        f"__MACOSX/{folder}._m.onnx": b"\0",
    }
    content = archive(files)
    (tmp_path / "a").write_bytes(content)
    assert is_archive(tmp_path / "a")
    assert onnx.load_from_string(packed(tmp_path, content)) == whole
    assert packed(tmp_path, archive({"alone.onnx": whole.SerializeToString()})) == whole.SerializeToString()


def test_pack_replaces_the_upload_by_a_file_that_passes_the_check(tmp_path: Path) -> None:
    """In the confined child; the same files give the same bytes."""
    model, data, whole = two_files()
    for _ in range(2):
        (tmp_path / "m").write_bytes(model)
        (tmp_path / "d").write_bytes(data)
        found = pack(tmp_path / "m", tmp_path / "d", "m.onnx.data", tmp_path / "m", bytes_max=LIMIT, timeout_s=60)
    assert found.size_bytes == (tmp_path / "m").stat().st_size
    assert check_onnx(tmp_path / "m").parameters == 192 * 4 + 4
    assert onnx.load(tmp_path / "m") == whole


def place(**changed: str) -> Change:
    return lambda model, given: given.update(changed)


def twice(model: onnx.ModelProto, given: dict[str, str]) -> None:
    model.graph.initializer[0].external_data.add(key="offset", value="0")


def in_the_file_too(model: onnx.ModelProto, given: dict[str, str]) -> None:
    model.graph.initializer[0].raw_data = b"\0"


def huge(model: onnx.ModelProto, given: dict[str, str]) -> None:
    """More than a limit by ten thousand tensors that all lie in the same place."""
    tensor = model.graph.initializer[0]
    for number in range(10_000):
        other = model.graph.initializer.add(name=f"t{number}", data_type=tensor.data_type, dims=tensor.dims)
        other.data_location = TensorProto.EXTERNAL
        for key, value in given.items():
            other.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (place(location="../m.onnx.data"), "which is no plain file name"),
        (place(location="/etc/passwd"), "which is no plain file name"),
        (place(location=".."), "which is no plain file name"),
        (place(location="sub\\m.onnx.data"), "which is no plain file name"),
        (place(location=""), "which is no plain file name"),
        (place(location="other.data"), r"lie in .*other.data, the upload's `data` is 'm.onnx.data'"),
        (place(offset="1000000"), "which has 3088 bytes: the two files are of different exports"),
        (place(offset="-4"), "have the offset '-4', which is no number of bytes"),
        (place(offset="9" * 30), "which is no number of bytes"),
        (place(length="4"), "have 4 bytes, their shape and type need 3072"),
        (place(length="999999"), "have 999999 bytes, their shape and type need 3072"),
        (place(basepath="/"), "have the place basepath, which is none of"),
        (twice, "have the place twice"),
        (in_the_file_too, "lie in the file and outside"),
        (huge, "more than the 1048576 bytes allowed together"),
    ],
)
@pytest.mark.parametrize("single_max", [LIMIT, LARGE])
def test_packing_refuses_places_that_are_none(change: Change, said: str, single_max: int, tmp_path: Path) -> None:
    """Of what becomes one ONNX file as of a large teacher."""
    model, data, _ = two_files(change=change)
    with pytest.raises(InvalidTeacher, match=said):
        packed(tmp_path, model, data, "m.onnx.data", single_max=single_max)


def test_packing_refuses_a_text_outside_the_file(tmp_path: Path) -> None:
    model = onnx_models.random_linear()
    text = model.graph.initializer.add(name="text", data_type=TensorProto.STRING, dims=[1])
    text.data_location = TensorProto.EXTERNAL
    text.external_data.add(key="location", value="d")
    with pytest.raises(InvalidTeacher, match="'text' are text: only numbers may lie outside"):
        packed(tmp_path, model.SerializeToString(), b"abcd", "d")


MODEL, DATA, WHOLE = two_files()
BOMB = zipped({"m.onnx": MODEL, "m.onnx.data": bytes(8 << 20)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped({"m.onnx": MODEL}), r"lie in 'm.onnx.data', and the archive has m.onnx beside the model"),
        (zipped({"a/m.onnx": MODEL, "b/m.onnx.data": DATA}), "the archive has m.onnx beside the model"),
        (
            zipped({"m.onnx": MODEL, "n.onnx": MODEL}),
            r"a zip archive with m.onnx, n.onnx, and an archive must hold one",
        ),
        (zipped({"archive/data.pkl": b""}), r"no .onnx file \(it has archive/data.pkl\).*Export the classifier"),
        (zipped({"m.onnx": b""}), "the ONNX file is empty"),
        (zipped({f"{i}": b"" for i in range(10_001)}), "has 10001 files"),
        (BOMB, "more than the 1048576 bytes allowed"),
        (b"PK\x03\x04 no archive", "as an archive it cannot be read"),
        (gzip.compress(b"no archive"), "as an archive it cannot be read"),
        (gzip.compress(tarred({"m.onnx": bytes(8 << 20)}))[:-20], "cannot be read|more than the 1048576 bytes"),
    ],
    ids=range(10),
)
def test_packing_refuses_archives(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=said):
        packed(tmp_path, content)


def test_packing_refuses_data_that_no_weight_lies_in(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match="its weights in the file itself: send it alone"):
        packed(tmp_path, WHOLE.SerializeToString(), DATA, "m.onnx.data")
    assert np.frombuffer(DATA, np.float32).size == 192 * 4 + 4
