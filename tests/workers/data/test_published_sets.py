"""Published datasets in their published files: SVHN, STL-10 and KMNIST."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.workers.data.test_discovery import make_mnist
from tests.workers.data.test_prepared import prepare
from workers.data.kinds import svhn
from workers.data.kinds.stl10 import Stl10Dataset
from workers.data.kinds.svhn import SvhnDataset
from workers.data.kinds.torchvision_sets import TorchvisionDataset
from workers.data.preparation.discovery import examine
from workers.errors import InvalidDataset


def test_svhn_is_read_from_its_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "SAMPLES", {"train": 20, "test": 10})
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) % 10 + 1
    for split, count in svhn.SAMPLES.items():
        content = {"X": images[:count].transpose(1, 2, 3, 0), "y": labels[:count, None].astype(np.uint8)}
        savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=True)
    spec = SvhnDataset()
    source = examine(spec, tmp_path)
    assert (source.samples, source.class_names) == ({"train": 20, "test": 10}, tuple("0123456789"))
    train = prepare(spec, "train", tmp_path)
    np.testing.assert_array_equal(train.take(slice(None)), images)
    assert train.labels_N[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    (tmp_path / "test_32x32.mat").write_bytes(b"no mat file")
    with pytest.raises(InvalidDataset, match=r"^test_32x32.mat cannot be read as the published .mat file"):
        prepare(spec, "test", tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": images[:9].transpose(1, 2, 3, 0), "y": labels[:9]})
    with pytest.raises(InvalidDataset, match=r"holds X uint8 \[32, 32, 3, 9\] and 9 labels; the published file has"):
        prepare(spec, "test", tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(InvalidDataset, match=r"in the data root; missing: test_32x32.mat"):
        examine(spec, tmp_path)


@pytest.mark.parametrize("path", [".", "stl10_binary"])
def test_stl10_is_read_from_its_binary_files(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10 + 1
    for split, count in (("train", 20), ("test", 10)):
        # Channels first, and each by columns.
        images[:count].transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        labels[:count].tofile(folder / f"{split}_y.bin")
    spec = Stl10Dataset(path=path)
    source = examine(spec, tmp_path)
    assert (source.samples, source.classes) == ({"train": 20, "test": 10}, 10)
    train = prepare(spec, "train", tmp_path)
    np.testing.assert_array_equal(train.take(slice(None)), images)
    assert train.labels_N[:10].tolist() == list(range(10))
    for wrong, message in ((labels[:9], "expected 27648 for each picture"), (labels[:10] * 11, "holds the label 110")):
        wrong.tofile(folder / "test_y.bin")
        with pytest.raises(InvalidDataset, match=message):
            examine(spec, tmp_path)


def test_kmnist_has_names_and_a_folder_of_its_own(tmp_path: Path) -> None:
    make_mnist(tmp_path / "KMNIST/raw", ".gz")
    source = examine(TorchvisionDataset(kind="kmnist"), tmp_path)
    assert source.class_names == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    with pytest.raises(InvalidDataset, match="MNIST/raw"):
        examine(TorchvisionDataset(kind="mnist"), tmp_path)
