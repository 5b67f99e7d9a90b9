"""Headers of safetensors files: what a sound one holds, and the refusal of each that is not."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workers.errors import InvalidStudentFile
from workers.students import safetensors_header
from workers.students.build import build_student
from workers.students.safetensors_header import read_header

ONE: Mapping[str, object] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: object, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_header_is_what_safetensors_itself_reads(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = build_student("cnn_s", 10).state_dict()
    save_file({**state, "none": torch.zeros(0, 3), "half": torch.ones(3).bfloat16()}, path, {"format": "pt"})
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(header.tensors)
        for name, tensor in header.tensors.items():
            assert (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) == tensor[:2]
    assert header.metadata == {"format": "pt"}
    assert sum(tensor.values for tensor in header.tensors.values()) == sum(x.numel() for x in state.values()) + 3


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[1, 2]", b"", "the header is no JSON object"),
        (b"{not json}", b"", "the header is no JSON: "),
        (b"[" * 100_000, b"", "the header is no JSON"),
        (b'{"a": 1, "a": 2}', b"", "one name twice"),
        ({}, b"", "the file has 0 tensors"),
        ({"__metadata__": {"a": 1}, "w": ONE}, b"\0" * 8, "__metadata__ is no object of texts"),
        ({"w": {**ONE, "dtype": "F8_E4M3"}}, b"\0" * 8, "tensor 'w' is 'F8_E4M3': F64, F32"),
        ({"w": {**ONE, "shape": [-2]}}, b"\0" * 8, "entry of tensor 'w' is wrong: shape/0"),
        ({"w": {**ONE, "shape": [2.0]}}, b"\0" * 8, "entry of tensor 'w' is wrong: shape/0"),
        ({"w": {**ONE, "shape": [1] * 9}}, b"\0" * 8, "entry of tensor 'w' is wrong: shape"),
        ({"w": {**ONE, "more": 1}}, b"\0" * 8, "entry of tensor 'w' is wrong: more"),
        ({"w": {**ONE, "shape": [3]}}, b"\0" * 8, r"F32 \[3\], which is 12 bytes, .* bytes \d+ to \d+ of a file"),
        ({"w": {**ONE, "shape": [1 << 39, 1 << 39]}}, b"\0" * 8, "cut off or damaged"),
        ({"w": ONE}, b"\0" * 7, "cut off or damaged"),
        ({"w": ONE}, b"\0" * 9, "1 bytes behind its last tensor"),
        ({"w": ONE, "x": ONE}, b"\0" * 8, "tensor 'x' begins at byte .* one behind the other"),
        ({"w": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12, "tensor 'w' begins at byte"),
        ({"w\u202e": ONE}, b"\0" * 8, "printable characters"),
        ({"w" * 600: ONE}, b"\0" * 8, "names are 1 to 512"),
    ],
)
def test_header_that_is_damaged_or_hostile_is_refused(
    header: object, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidStudentFile, match=message):
        read_header(written(tmp_path / "w", header, data))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 64, struct.pack("<Q", 5) + b"{}"])
def test_file_that_does_not_begin_with_a_header_is_no_safetensors_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InvalidStudentFile, match=r"no safetensors file.*save_file\(model\.state_dict\(\)"):
        read_header(tmp_path / "w")


def test_header_is_read_up_to_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "w", {"w": ONE, "x": {**ONE, "data_offsets": [8, 16]}}, b"\0" * 16)
    monkeypatch.setattr(safetensors_header, "TENSORS_MAX", 1)
    with pytest.raises(InvalidStudentFile, match="2 tensors: 1 to 1 are taken"):
        read_header(path)
    monkeypatch.setattr(safetensors_header, "HEADER_BYTES_MAX", 100)
    with pytest.raises(InvalidStudentFile, match=r"the header has \d+ bytes, at most 100 are read"):
        read_header(path)
