"""Large teachers: graph and weights in one archive of our own, with the bound of 2 GiB lowered to 2,048 bytes."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from tests.workers.onnx.test_packing import DATA, LARGE, MODEL, WHOLE, packed, tarred, zipped
from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher
from workers.onnx.checks import large_file
from workers.onnx.checks.check import FILE_MAX_BYTES, check_onnx
from workers.onnx.checks.external_data import external_tensors, set_values
from workers.onnx.checks.large_file import BLOCK, DATA_NAME, GRAPH_NAME, LargeLayout, find_layout, read_graph
from workers.onnx.sandboxing import sandbox
from workers.onnx.sandboxing.sandbox import SandboxOutcome
from workers.onnx.sessions import session_memory
from workers.onnx.sessions.confined_session import ConfinedSession, limits_of
from workers.onnx.sessions.session import OnnxSession
from workers.onnx.sessions.smoke_test import smoke_run
from workers.onnx.uploads import received_files
from workers.onnx.uploads.inspection import inspect_in_subprocess
from workers.onnx.uploads.packing import pack

NAME = "m.onnx.data"
# Of the file that two_files() makes: a teacher's digest is its identity, and keys of caches hold it.
SHA256 = "b91027baa9238329220a23b1ed55cdedb070e83d80aae632e1bd2081e7bece39"
PICTURES = np.random.default_rng(3).normal(size=(5, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A large teacher's file, made in the confined child of two parts."""
    (tmp_path / "m").write_bytes(MODEL)
    (tmp_path / "d").write_bytes(DATA)
    path = tmp_path / "large.onnx"
    path.touch()
    found = pack(tmp_path / "m", tmp_path / "d", NAME, path, bytes_max=1 << 20, timeout_s=60, single_max=LARGE)
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    return path


def test_large_file_is_the_same_bytes_however_its_model_came(large: Path, tmp_path: Path) -> None:
    """And as it always was."""
    content = large.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    files = {"a/m.onnx": MODEL, f"a/{NAME}": DATA, "a/README": b"hello"}
    for sent in (zipped(files), tarred(files), gzip.compress(tarred(files)), content):
        assert packed(tmp_path, sent, single_max=LARGE) == content
    assert packed(tmp_path, MODEL, DATA, single_max=LARGE) == content
    # Another name and order of the weights, with a hole between them: the same teacher.
    model = onnx.load_from_string(MODEL)
    weight, bias = model.graph.initializer
    for tensor, offset in ((weight, 1000), (bias, 0)):
        for entry in tensor.external_data:
            entry.value = {"location": "other", "offset": str(offset)}.get(entry.key, entry.value)
    moved = DATA[3072:] + bytes(1000 - 16) + DATA[:3072] + b"rest"
    sent = zipped({"m.onnx": model.SerializeToString(), "other": moved})
    assert packed(tmp_path, sent, single_max=LARGE) == content
    # The large weight in the graph, as exporters that move only still larger ones leave it.
    set_values(weight, DATA[:3072])
    for entry in bias.external_data:
        entry.value = "16" if entry.key == "length" else entry.value
    sent = zipped({"m.onnx": model.SerializeToString(), "other": DATA[3072:]})
    assert packed(tmp_path, sent, single_max=LARGE) == content


def test_packing_reads_the_files_of_a_tar_archive_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To go back in a compressed one is to read it again from its begin."""
    model = onnx.load_from_string(MODEL)
    weight, bias = model.graph.initializer
    placed(weight, location="a")
    placed(bias, location="z", offset="0")
    opened = []

    def open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        opened.append(member.name)
        return archive.extractfile(member)

    monkeypatch.setattr(received_files, "_opened", open_member)
    files = {"z": DATA[3072:], "m.onnx": model.SerializeToString(), "a": DATA[:3072]}
    whole = packed(tmp_path, gzip.compress(tarred(files)))
    assert (onnx.load_from_string(whole), opened) == (WHOLE, ["m.onnx", "z", "a"])


def test_packing_refuses_large_weights_that_nothing_reads(tmp_path: Path) -> None:
    """By name, before anything is written: they would be GiB of padding."""
    model = onnx.load_from_string(MODEL)
    tensor = model.graph.initializer.add(name="pad", data_type=TensorProto.FLOAT, dims=[768])
    placed(tensor, location=NAME, offset="0", length="3072")
    with pytest.raises(InvalidTeacher, match=r"reads the weights pad, .* remove them from model\.graph"):
        packed(tmp_path, model.SerializeToString(), DATA, NAME, single_max=LARGE)
    node = helper.make_node("Identity", ["pad"], ["d"])
    branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("d", TensorProto.FLOAT, [768])])
    model.graph.node.append(helper.make_node("If", ["c"], ["e"], then_branch=branch, else_branch=branch))
    assert packed(tmp_path, model.SerializeToString(), DATA, NAME, single_max=LARGE)


def test_memory_of_the_two_looks_at_a_large_file_does_not_grow_with_its_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads the graph alone; the other may take half of the machine's memory beside the mapped file."""
    asked = []

    def call(*_: object, memory_bytes: int, **__: object) -> SandboxOutcome:
        asked.append(memory_bytes)
        return SandboxOutcome(None, "is not run")

    graph = check_onnx(onnx_models.save(WHOLE, tmp_path / "whole.onnx"))
    monkeypatch.setattr(sandbox, "call", call)
    monkeypatch.setattr(session_memory, "memory_bytes", lambda: 8 << 30)
    with (tmp_path / "padded").open("wb") as file:
        file.truncate(16 << 30)
    for look in (inspect_in_subprocess, lambda path: smoke_run(path, graph, Preprocessing())):
        with pytest.raises(InvalidTeacher, match="is not run"):
            look(tmp_path / "padded")
    assert asked == [(2 << 30) + 5 * FILE_MAX_BYTES, (4 << 30) + (16 << 30) + (4 << 30)]


def test_graph_that_has_2_gib_with_the_places_in_its_own_file_is_an_invalid_teacher(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A model at the limit of protobuf."""

        graph = onnx.GraphProto()

        def SerializeToString(self) -> bytes:
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(large_file, "parse", lambda content: Full())
    with pytest.raises(InvalidTeacher, match=r"2 GiB or more with the places of its weights in 'large\.onnx'"):
        OnnxSession(large, "images", "logits", threads=1)


def test_large_file_unpacks_to_a_pair_that_onnx_reads(large: Path, tmp_path: Path) -> None:
    """Small weights are in the graph; of the client's names nothing is left."""
    with tarfile.open(large) as archive:
        assert archive.getnames() == [GRAPH_NAME, DATA_NAME]
        archive.extractall(tmp_path / "pair", filter="data")
    values = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "pair" / GRAPH_NAME).graph.initializer]
    for value, expected in zip(values, WHOLE.graph.initializer, strict=True):
        assert (value == numpy_helper.to_array(expected)).all()
    onnx.checker.check_model(str(tmp_path / "pair" / GRAPH_NAME))
    graph = onnx.load(tmp_path / "pair" / GRAPH_NAME, load_external_data=False)
    assert [tensor.name for tensor in external_tensors(graph)] == ["weight"]
    assert NAME.encode() not in large.read_bytes()


def test_large_file_is_checked_and_runs_as_the_one_file_would(large: Path, tmp_path: Path) -> None:
    """In this process, in a confined one, and in a smoke run."""
    whole = onnx_models.save(WHOLE, tmp_path / "whole.onnx")
    graph = check_onnx(large)
    assert graph == check_onnx(whole)
    names = "images", "logits"
    expected = OnnxSession(whole, *names, threads=1).run(PICTURES)
    assert (OnnxSession(large, *names, threads=1).run(PICTURES) == expected).all()
    confined = ConfinedSession(large, *names, threads=1, limits=limits_of(large, 1, 1))
    assert (confined.run(PICTURES) == expected).all()
    assert confined.missing == ()
    confined.close()
    assert smoke_run(large, graph, Preprocessing())


def test_child_that_fills_a_file_can_do_nothing_else_with_it(tmp_path: Path) -> None:
    """Its pages are the file; not its size, its rights, nor another descriptor."""
    size = 1 << 16
    (tmp_path / "f").write_bytes(bytes(size))
    before = (tmp_path / "f").stat().st_mode
    with (tmp_path / "f").open("r+b") as file:
        outcome = sandbox.call(
            "tests.support.sandbox_probes:fill_a_file",
            {"descriptor": file.fileno(), "size": size},
            readable=[sandbox.ROOT / "tests"],
            memory_bytes=1 << 30,
            timeout_s=20,
            descriptors=[file.fileno()],
        )
    assert isinstance(outcome.value, dict)
    assert outcome.value.pop("write") == outcome.value.pop("append") == "OSError"  # EFBIG
    assert set(outcome.value.values()) == {"PermissionError"}
    assert (tmp_path / "f").read_bytes() == bytes([7]) * size
    assert (tmp_path / "f").stat().st_mode == before


def test_large_file_whose_output_shapes_are_derived(tmp_path: Path) -> None:
    model = onnx.load_from_string(MODEL)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "t.onnx").write_bytes(packed(tmp_path, model.SerializeToString(), DATA, single_max=LARGE))
    assert check_onnx(tmp_path / "t.onnx").classes == 4


def archive_of(model: onnx.ModelProto, data: bytes) -> bytes:
    """An archive as we write it, of any graph and data."""
    graph = model.SerializeToString()
    layout = LargeLayout(len(graph), len(data))
    (_, first), (_, second) = layout.headers()
    return first + graph.ljust(-(-len(graph) // BLOCK) * BLOCK, b"\0") + second + data + bytes(2 * BLOCK)


def placed(tensor: TensorProto, **changed: str) -> None:
    """Change a place, and add what it lacks."""
    found = {entry.key: entry.value for entry in tensor.external_data} | changed
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in found.items():
        tensor.external_data.add(key=key, value=value)


def also(model: onnx.ModelProto, name: str, offset: int, **changed: str) -> TensorProto:
    """Another initializer of 3,072 bytes."""
    tensor: TensorProto = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[768])
    placed(tensor, location=DATA_NAME, offset=str(offset), length="3072", **changed)
    return tensor


def in_an_attribute(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=TensorProto(data_type=TensorProto.FLOAT, dims=[768]))
    placed(node.attribute[0].t, location=DATA_NAME, offset="0", length="3072")
    model.graph.node.append(node)


def in_a_subgraph(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[768])
    placed(tensor, location=DATA_NAME, offset="0", length="3072")
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("s", TensorProto.FLOAT, [768])], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def weight(**changed: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: placed(model.graph.initializer[0], **changed)


def tiny(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[2])
    placed(tensor, location=DATA_NAME, offset="3072", length="8")


@pytest.mark.parametrize(
    ("change", "data_bytes", "said"),
    [
        (weight(location="/etc/passwd"), 3072, "which is no plain file name"),
        (weight(location="../x"), 3072, "which is no plain file name"),
        (weight(location="large.onnx"), 3072, f"'weight' is not {DATA_NAME} at 0"),
        (weight(offset="512"), 3584, f"'weight' is not {DATA_NAME} at 0"),
        (weight(length="1536"), 3072, "have 1536 bytes, their shape and type need 3072"),
        (weight(checksum="0"), 3072, f"'weight' is not {DATA_NAME} at 0"),
        (weight(basepath="/"), 3072, "have the place basepath"),
        (lambda model: model.graph.initializer[0].external_data.add(key="offset", value="0"), 3072, "the place twice"),
        (lambda model: setattr(model.graph.initializer[0], "raw_data", b"0"), 3072, "lie in the file and outside"),
        (lambda model: also(model, "o", 0), 3072, f"'o' is not {DATA_NAME} at 3072"),
        (lambda model: also(model, "o", 1536), 6144, f"'o' is not {DATA_NAME} at 3072"),
        (lambda model: also(model, "o", 3584), 7168, f"'o' is not {DATA_NAME} at 3072"),
        (lambda model: also(model, "weight", 3072), 6144, "two initializers have one name"),
        (lambda model: also(model, "images", 3072), 6144, "the graph has 0 inputs"),
        (lambda model: also(model, "flat", 3072), 6144, "not a valid ONNX graph"),
        (tiny, 3584, f"'t' is not {DATA_NAME} at 3072"),
        (in_an_attribute, 3072, "no initializers of the graph"),
        (in_a_subgraph, 3072, "no initializers of the graph"),
        (lambda model: None, 3584, "its weights have 3072 bytes, its data 3584"),
        (lambda model: None, 2560, "its weights have 3072 bytes, its data 2560"),
    ],
    ids=range(20),
)
def test_check_refuses_an_archive_with_other_places(
    change: Callable[[onnx.ModelProto], object], data_bytes: int, said: str, large: Path
) -> None:
    """Nothing outside the file, no hole, no overlap, no second name; the unchanged graph is let in."""
    layout = find_layout(large)
    assert layout is not None
    model = onnx.load_from_string(read_graph(large, layout))
    large.write_bytes(archive_of(model, DATA[:3072]))
    check_onnx(large)
    change(model)
    large.write_bytes(archive_of(model, bytes(data_bytes)))
    with pytest.raises(InvalidTeacher, match=said):
        check_onnx(large)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content + bytes(512), "by its headers"),
        (lambda content: content[:-512], "by its headers"),
        (lambda content: content[:2000], "no header of|by its header"),
        (lambda content: content[:BLOCK], f"no header of {DATA_NAME}"),
        (lambda content: content[:-1] + b"\1", "by its headers"),
        (lambda content: content.replace(b"0000644\0", b"0000755\0", 1), f"no header of {GRAPH_NAME}"),
        (lambda content: next(LargeLayout(1 << 70, 1).headers())[1] + content[BLOCK:], "its model.onnx has 11805916"),
        (lambda content: content.replace(DATA_NAME.encode(), b"model.onnx.datb"), "no header of|its header of"),
        (lambda content: tarred({GRAPH_NAME: MODEL, DATA_NAME: DATA}), "its header of model.onnx at 0 is another"),
        (lambda content: tarred({"other.onnx": MODEL}), "not an ONNX file: it is a tar archive"),
    ],
    ids=range(10),
)
def test_check_refuses_an_archive_that_is_not_as_we_write_it(
    change: Callable[[bytes], bytes], said: str, large: Path
) -> None:
    large.write_bytes(change(large.read_bytes()))
    with pytest.raises(InvalidTeacher, match=said):
        check_onnx(large)


def test_packing_refuses_a_large_model_whose_weights_are_no_initializers(tmp_path: Path) -> None:
    """They would have to be in the graph, which is one ONNX file."""
    model = onnx.load_from_string(MODEL)
    in_an_attribute(model)
    placed(model.graph.node[-1].attribute[0].t, location=NAME)
    with pytest.raises(InvalidTeacher, match="without the large initializers of its main graph"):
        packed(tmp_path, model.SerializeToString(), DATA, NAME, single_max=LARGE)


def test_packing_refuses_a_large_file_beyond_the_limit_and_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(MODEL)
    (tmp_path / "d").write_bytes(DATA)
    with pytest.raises(InvalidTeacher, match="more than the 4096 bytes allowed"):
        pack(tmp_path / "m", tmp_path / "d", NAME, tmp_path / "m", bytes_max=4096, timeout_s=60, single_max=LARGE)
    # Not compressed, so that nothing but the sum of a member tells that a weight in it is another.
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m.onnx", MODEL)
        archive.writestr(NAME, DATA + bytes(100_000))
    damaged = bytearray(made.getvalue())
    damaged[made.getvalue().index(DATA) + 40] ^= 1
    with pytest.raises(InvalidTeacher, match=r"as an archive it cannot be read .*CRC-32"):
        packed(tmp_path, bytes(damaged), single_max=LARGE)


def test_one_onnx_file_beyond_2_gib_is_refused_with_the_next_step(tmp_path: Path) -> None:
    """Alone, and beside its weights; it is not read."""
    with (tmp_path / "m").open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    with pytest.raises(InvalidTeacher, match=r"larger than .* save a larger model with its weights beside it"):
        check_onnx(tmp_path / "m")
    (tmp_path / "d").write_bytes(DATA)
    with pytest.raises(InvalidTeacher, match=r"no ONNX file has 2 GiB or more: .*save_as_external_data=True"):
        pack(tmp_path / "m", tmp_path / "d", NAME, tmp_path / "m", bytes_max=8 << 30, timeout_s=60)
