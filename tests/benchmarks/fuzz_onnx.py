"""Fuzzes the check of uploaded teachers: it may accept a file or refuse it with InvalidTeacher, and nothing else.

    python -m tests.benchmarks.fuzz_onnx --seconds 300

Mutants of small models that between them have every part a model can have, three ways: libFuzzer's own mutations of the
bytes, guided by coverage of the check's Python code (atheris); a mutation of the parsed protobuf, field by field, so
that what follows the parser is reached; and two models crossed. It runs in this process under a limit on memory, so a
crash of a native library ends it; the input that did it lies in ``--findings``.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from workers.errors import InvalidTeacher
from workers.onnx.checks import check, parsing, rules, scopes

LIMITS = check.FileLimits(file_bytes=1 << 20, tensor_bytes=1 << 24, nodes=5000)
MEMORY_BYTES = 4 << 30
NASTY_INTS = (0, 1, -1, 2, 7, 127, 255, 1 << 16, (1 << 31) - 1, -(1 << 31), 1 << 32, (1 << 63) - 1, -(1 << 63))
NASTY_BYTES = (b"", b"\0", b"\xff\xfe", b"images", b"logits", b"../x", b"ai.onnx.contrib", b"a" * 5000, b"%s%n")


# ------------------------------------------------------------------------------------------------------------- seeds


def seeds() -> list[bytes]:
    """Small models that between them have every part a model can have."""
    weight = {"weight": np.zeros((192, 4), np.float32)}
    flatten = helper.make_node("Flatten", ["images"], ["flat"])
    gemm = helper.make_node("Gemm", ["flat", "weight"], ["logits"])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Relu", ["x"], ["y"])]
    function = helper.make_function("own", "Wrapped", ["x"], ["y"], body, imports)
    wrapped = [flatten, helper.make_node("Wrapped", ["flat"], ["f"], domain="own")]
    wrapped.append(helper.make_node("Gemm", ["f", "weight"], ["logits"]))
    branches = [
        helper.make_graph([helper.make_node("Relu", ["z"], [name])], name, [], [onnx_models.logits(name=name)])
        for name in ("a", "b")
    ]
    choice = helper.make_node("If", ["flag"], ["logits"], then_branch=branches[0], else_branch=branches[1])
    constant = helper.make_node("Constant", [], ["weight"], value=numpy_helper.from_array(weight["weight"]))
    mode = {**weight, "ratio": np.array(0.5, np.float32), "mode": np.array(False)}
    dropout = helper.make_node("Dropout", ["flat", "ratio", "mode"], ["kept"])
    sparse = onnx_models.model([flatten, gemm], constants=weight)
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("", TensorProto.INT64, [2], [0, 3])
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [768]))
    external = onnx_models.random_linear()
    external.graph.initializer[0].external_data.add(key="location", value="../x")
    undeclared = onnx_models.model([flatten, gemm], outputs=[onnx_models.logits(None)], constants=weight)
    models = [
        onnx_models.random_linear(),
        onnx_models.random_linear(batch=2, tail=["Relu", "Softmax"], dtype=np.float16),
        onnx_models.model(wrapped, constants=weight, opset_imports=imports, functions=[function]),
        onnx_models.model(
            [flatten, helper.make_node("Gemm", ["flat", "weight"], ["z"]), choice],
            constants={**weight, "flag": np.array(True)},
        ),
        onnx_models.model([constant, flatten, gemm]),
        onnx_models.model([flatten, dropout, helper.make_node("Gemm", ["kept", "weight"], ["logits"])], constants=mode),
        sparse,
        external,
        undeclared,
    ]
    return [model.SerializeToString() for model in models]


# ------------------------------------------------------------------------------------------------- protobuf mutation


def mutate(content: bytes, chance: random.Random, donors: list[bytes]) -> bytes:
    """The model in ``content`` with a few fields changed; the bytes with some changed if it does not parse."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return _mutate_bytes(content, chance)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        with contextlib.suppress(ValueError, TypeError):  # a value that the field's type does not take
            _mutate_message(chance.choice(list(_messages(model))), chance, donors)
    mutant = bytes(model.SerializePartialToString())
    return _mutate_bytes(mutant, chance) if chance.random() < 0.2 else mutant


def _mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    mutant = bytearray(content or b"\x08")
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(mutant))
        how = chance.randrange(4)
        if how == 0:
            mutant[place] = chance.randrange(256)
        elif how == 1:
            mutant[place:place] = chance.choice(NASTY_BYTES)
        elif how == 2 and len(mutant) > 1:
            del mutant[place : place + chance.randint(1, 8)]
        else:
            mutant[place] ^= 1 << chance.randrange(8)
        mutant = mutant or bytearray(b"\x08")
    return bytes(mutant)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _mutate_message(message: Message, chance: random.Random, donors: list[bytes]) -> None:
    field: FieldDescriptor = chance.choice(message.DESCRIPTOR.fields)
    if chance.random() < 0.2:
        message.ClearField(field.name)
        return
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        _mutate_inner(message, field, chance, donors)
        return
    value = _value(field, chance)
    if not field.is_repeated:
        setattr(message, field.name, value)
        return
    values = getattr(message, field.name)
    if values and chance.random() < 0.5:
        values[chance.randrange(len(values))] = value
    else:
        values.extend([value] * chance.choice((1, 1, 3, 40)))


def _mutate_inner(message: Message, field: FieldDescriptor, chance: random.Random, donors: list[bytes]) -> None:
    kind = field.message_type.full_name
    others = [inner for inner in _messages(_parsed(chance.choice(donors))) if inner.DESCRIPTOR.full_name == kind]
    if not field.is_repeated:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if others:
            inner.CopyFrom(chance.choice(others))
        return
    values = getattr(message, field.name)
    how = chance.randrange(4)
    if how == 0 and values:
        del values[chance.randrange(len(values))]
    elif how == 1 and values:
        copy = values[chance.randrange(len(values))]
        for _ in range(chance.choice((1, 1, 5))):
            values.add().CopyFrom(copy)
    elif others:
        values.add().CopyFrom(chance.choice(others))
    else:
        values.add()


def _parsed(content: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    with contextlib.suppress(DecodeError):
        model.ParseFromString(content)
    return model


def _value(field: FieldDescriptor, chance: random.Random) -> object:
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        content = chance.choice(NASTY_BYTES)
        return content if field.type == FieldDescriptor.TYPE_BYTES else content.decode(errors="ignore")
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return chance.choice((0.0, -1.0, float("inf"), float("nan"), 1e30))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.randrange(30)
    return chance.choice(NASTY_INTS)


# ----------------------------------------------------------------------------------------------------------- the run


class Fuzzer:
    """One run: what was tried, what came of it, what should not have been."""

    def __init__(self, findings: Path) -> None:
        self.findings = findings
        self.counts: Counter[str] = Counter()
        self.raised: dict[str, str] = {}
        self._file = findings / "current.onnx"
        findings.mkdir(parents=True, exist_ok=True)

    def try_one(self, content: bytes) -> None:
        """Checks one input; anything but acceptance or InvalidTeacher is kept with its input."""
        self.counts["executions"] += 1
        self._file.write_bytes(content)
        try:
            check.check_onnx(self._file, limits=LIMITS)
            self.counts["accepted"] += 1
        except InvalidTeacher:
            self.counts["refused"] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {where.name}"
            self.counts["findings"] += 1
            if kind not in self.raised:
                self.raised[kind] = str(error)[:200]
                (self.findings / f"{len(self.raised)}.onnx").write_bytes(content)


def fuzz_structure(fuzzer: Fuzzer, seconds: float, seed: int) -> None:
    """Protobuf mutations alone, without atheris, from a growing pool."""
    chance = random.Random(seed)
    pool = seeds()
    for content in pool:
        fuzzer.try_one(content)
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        mutant = mutate(chance.choice(pool), chance, pool)
        if len(mutant) > LIMITS.file_bytes:
            continue
        accepted = fuzzer.counts["accepted"]
        fuzzer.try_one(mutant)
        # What is still accepted is a step on the way to what is not foreseen.
        if fuzzer.counts["accepted"] > accepted and len(pool) < 200 and len(mutant) < 50_000:
            pool.append(mutant)


def fuzz_coverage(fuzzer: Fuzzer, seconds: float, seed: int, finish: Callable[[], None]) -> None:
    """Guided by coverage; libFuzzer ends the process, after ``finish``."""
    import atheris

    with atheris.instrument_imports(include=["workers"]):
        for module in (parsing, scopes, rules, check):
            importlib.reload(module)
    pool = seeds()
    corpus = fuzzer.findings / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(pool):
        (corpus / f"seed-{number}").write_bytes(content)

    def mutator(content: bytes, size_max: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < 0.3:
            return bytes(atheris.Mutate(content, size_max))
        return mutate(content, chance, pool)[:size_max]

    ends_s = time.monotonic() + seconds

    def one(content: bytes) -> None:
        if time.monotonic() > ends_s:
            finish()
        fuzzer.try_one(content)

    arguments = [sys.argv[0], str(corpus), f"-seed={seed}", "-max_len=65536", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup(arguments, one, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    """Fuzzes for so many seconds, prints one JSON object, and ends with 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("/tmp/retort-fuzz"))
    parser.add_argument("--without-atheris", action="store_true", help="protobuf mutations alone, without coverage")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    fuzzer = Fuzzer(given.findings)
    started_s = time.monotonic()

    def finish() -> None:
        seconds = round(time.monotonic() - started_s, 1)
        print(json.dumps({**fuzzer.counts, "seconds": seconds, "raised": fuzzer.raised}), flush=True)
        os._exit(1 if fuzzer.counts["findings"] else 0)  # libFuzzer has handlers of its own for an ordinary end

    if given.without_atheris:
        fuzz_structure(fuzzer, given.seconds, given.seed)
        finish()
    fuzz_coverage(fuzzer, given.seconds, given.seed, finish)


if __name__ == "__main__":
    main()
