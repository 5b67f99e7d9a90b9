"""The identity of datasets: fingerprints, source keys and stored descriptions are those of earlier versions.

Caches, decoded copies and registered datasets of an existing data directory are found by them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.workers.data.test_discovery import make_folder, make_mnist, make_npz
from tests.workers.data.test_prepared import make_cifar, prepare
from workers.config.dataset import DatasetSpec
from workers.data.preparation.discovery import examine

SPEC: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
# Descriptions as the database has them, and fingerprints of both splits of the datasets that ``root`` makes; all noted
# before each kind had a class of its own.
FINGERPRINTS = {
    '{"kind":"digits"}': (
        "e3d8e819b7c4ecd0dd13a38ea3f2d1a1270474c19f0889a77776856e01d81876",
        "4b833b8c1791aa8348330384b6ba4dfea0cfa81625e65bb4c3ab727eeed44856",
    ),
    '{"kind":"digits","train_per_class":3}': (
        "d9ee7e60f4c45e5b7d95a3f9c994859b4fc71a09994ac906d1f10b441ef25442",
        "4b833b8c1791aa8348330384b6ba4dfea0cfa81625e65bb4c3ab727eeed44856",
    ),
    '{"kind":"cifar100","path":"."}': (
        "cfb56f9db57e355f3b1337023cd329397e83d90eebdae98d061ca2baac438e05",
        "fdba0a1c2df3f9f3455255eff8f236a7c4410bec5e82796e7a3656eb04a5ef7b",
    ),
    '{"kind":"mnist","path":"."}': (
        "51a379a17b8038c0304eb79aedfa26f213b3004c71e57839f75b7ceceb000c96",
        "ab7529347a54ffb394317a42e496194023b926609fda9b8df29a461fd8e40978",
    ),
    '{"kind":"fashion_mnist","path":"."}': (
        "44da8d26b03202118c341e29dc5a949ea2722ce2467119fd8d0a35c503ad6fb7",
        "e3e6884efc651981bceab82397dab52cdf85b12ba3e59205483a12973e36b7c4",
    ),
    '{"kind":"folder","path":"pets","image_size":null,"storage":"decoded"}': (
        "211a32eb1263e56c96ac329a5f9b9396081beeb2444f257acec74b47c0999a29",
        "ad86dc8855f6dc3f1b5f4f9bac672581ac9c26442630a91c4e26a1e1409adb2a",
    ),
    '{"kind":"folder","path":"pets","image_size":null,"storage":"files"}': (
        "211a32eb1263e56c96ac329a5f9b9396081beeb2444f257acec74b47c0999a29",
        "ad86dc8855f6dc3f1b5f4f9bac672581ac9c26442630a91c4e26a1e1409adb2a",
    ),
    '{"kind":"folder","path":"pets","image_size":[2,3],"storage":"decoded"}': (
        "cf6acaf2462fa894d295ebd532a5a5de4445b4431d61ae979e4a9451e59c2fee",
        "573af3d09c1fd447ac5307abd86b538f326544e796868550d6f0cadf09c26535",
    ),
    '{"kind":"npz","path":"a.npz"}': (
        "7875faea87cc6b06c262ecbb57054bd6997597dc3e709b736adbaa97fbb71993",
        "ba21654755d0b484dfc9d4696b4f5ec044b8fca59c2c4c9b3c6d631028d9a36a",
    ),
}
MNIST_FILES = ("images-idx3", "labels-idx1")
# Below ``root``: the source of each description that has one, and the files of its splits.
SOURCES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    '{"kind":"cifar10","path":"."}': (
        "cifar-10-batches-py",
        [*(f"data_batch_{n}" for n in range(1, 6)), "batches.meta"],
        ["test_batch", "batches.meta"],
    ),
    '{"kind":"cifar100","path":"cifar-100-python"}': ("cifar-100-python", ["train", "meta"], ["test", "meta"]),
    '{"kind":"mnist","path":"."}': (
        ".",
        [f"train-{name}-ubyte" for name in MNIST_FILES],
        [f"t10k-{name}-ubyte" for name in MNIST_FILES],
    ),
    '{"kind":"folder","path":"pets","image_size":[2,3],"storage":"files"}': (
        "pets",
        [f"train/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)],
        [f"test/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)],
    ),
    '{"kind":"npz","path":"a.npz"}': ("a.npz", [""], [""]),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One small dataset of every kind that has files."""
    make_folder(tmp_path, ("cat", "dog"), pictures=3)
    make_npz(tmp_path / "a.npz")
    make_mnist(tmp_path)
    make_cifar(tmp_path, monkeypatch)
    cifar10 = tmp_path / "cifar-10-batches-py"
    cifar10.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"):
        (cifar10 / name).write_bytes(b"only looked at")
    return tmp_path


@pytest.mark.parametrize("stored", FINGERPRINTS)
def test_fingerprints_and_stored_descriptions_are_those_of_earlier_versions(root: Path, stored: str) -> None:
    spec = SPEC.validate_json(stored)
    assert (prepare(spec, "train", root).fingerprint, prepare(spec, "test", root).fingerprint) == FINGERPRINTS[stored]
    assert spec.model_dump_json() == stored


@pytest.mark.parametrize("stored", SOURCES)
def test_source_key_is_that_of_earlier_versions(root: Path, stored: str) -> None:
    """By it a decoded copy is found again. How the pictures are stored is no part of it."""
    place, *files = SOURCES[stored]
    described = {name: value for name, value in json.loads(stored).items() if name != "storage"}
    source = root / place
    expected = hashlib.sha256(json.dumps([1, described, str(source)], sort_keys=True).encode())
    for split, names in zip(("train", "test"), files, strict=True):
        for path in (source / name for name in names):
            status = path.stat()
            expected.update(json.dumps([split, str(path), status.st_size, status.st_mtime_ns]).encode())
    assert examine(SPEC.validate_json(stored), root).key() == expected.hexdigest()


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ('{"kind":"digits"}', "8c45d636d7fb7e6f31a4bc9e2d7ceab02470f9451b1db2c7a659fe3e041ef1aa"),
        ('{"kind":"digits","train_per_class":3}', "15e643fb25c23dbc631573a85a2a1271ed77db45dfe8c5d0545183e5982664e9"),
    ],
)
def test_source_key_of_the_digits_is_that_of_scikit_learn_1_9_1(tmp_path: Path, stored: str, key: str) -> None:
    assert examine(SPEC.validate_json(stored), tmp_path).key() == key
