"""One small set of pictures in each form in which people have datasets, written by the tool that writes it in the wild.

Twelve training and eight test pictures of 8 x 8 pixels in four classes; PNG where a form holds encoded pictures, so
that every form holds the same pixels, labels and class names, in the same order.
"""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 4
COUNTS = {"train": 12, "test": 8}
LABELS = {split: np.arange(count) * 7 % CLASSES for split, count in COUNTS.items()}
PICTURES: Mapping[str, NDArray[np.uint8]] = {
    split: np.random.default_rng(place).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for place, (split, count) in enumerate(COUNTS.items())
}
NAMES = tuple(map(str, range(CLASSES)))


def encoded(picture: NDArray[np.uint8], form: str = "PNG") -> bytes:
    """A picture as PIL writes it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form)
    return file.getvalue()


def medmnist(root: Path) -> dict[str, object]:
    """As MedMNIST: labels are one column of uint8."""
    arrays = {f"{split}_images": pictures for split, pictures in PICTURES.items()}
    labels = {f"{split}_labels": labels[:, None].astype(np.uint8) for split, labels in LABELS.items()}
    np.savez_compressed(root / "medmnist.npz", **arrays, **labels)
    return {"kind": "npz", "path": "medmnist.npz"}


def keras(root: Path) -> dict[str, object]:
    """As Keras's mnist.npz."""
    arrays = {f"x_{split}": pictures for split, pictures in PICTURES.items()}
    np.savez(root / "keras.npz", **arrays, **{f"y_{split}": labels for split, labels in LABELS.items()})
    return {"kind": "npz", "path": "keras.npz"}


def cifar(root: Path) -> dict[str, object]:
    """Channels first, as CIFAR's rows reshaped."""
    arrays = {f"{split}_images": pictures.transpose(0, 3, 1, 2) for split, pictures in PICTURES.items()}
    np.savez(root / "cifar.npz", **arrays, **{f"{split}_labels": labels for split, labels in LABELS.items()})
    return {"kind": "npz", "path": "cifar.npz"}


def hub(root: Path) -> dict[str, object]:
    """As on the Hugging Face hub: two training files, ``ClassLabel`` in the schema's metadata."""
    import pyarrow.parquet as pq

    folder = root / "hub" / "data"
    folder.mkdir(parents=True)
    for split in COUNTS:
        table = hub_table(split)
        parts = 2 if split == "train" else 1
        for part in range(parts):
            rows = table.slice(part * len(table) // parts, len(table) // parts)
            pq.write_table(rows, folder / f"{split}-{part:05}-of-{parts:05}.parquet", row_group_size=4)
    return {"kind": "parquet", "path": "hub"}


def hub_table(split: str) -> "object":
    """Table of ``image`` (bytes, path) and ``label`` with the metadata of the package ``datasets``."""
    import pyarrow as pa

    features = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
    images = [{"bytes": encoded(picture), "path": f"{row}.png"} for row, picture in enumerate(PICTURES[split])]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(LABELS[split], pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def saved(root: Path) -> dict[str, object]:
    """As ``DatasetDict.save_to_disk`` writes it: Arrow streams, and JSON beside them."""
    import pyarrow as pa

    folder = root / "saved"
    for split in COUNTS:
        (folder / split).mkdir(parents=True)
        table = hub_table(split)
        name = "data-00000-of-00001.arrow"
        with pa.ipc.new_stream(str(folder / split / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
        state = {"_data_files": [{"filename": name}], "_fingerprint": "0", "_format_type": None, "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(COUNTS)}))
    return {"kind": "arrow", "path": "saved"}


def hub_paths(root: Path) -> dict[str, object]:
    """As ``datasets`` writes pictures that it is told not to embed: the ``bytes`` are null, paths lead to files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "hub_paths"
    folder.mkdir()
    for split in COUNTS:
        paths = write_files(folder, split)
        table: Any = hub_table(split)
        kind = table.schema.field("image").type
        images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
        pq.write_table(table.set_column(0, "image", images), folder / f"{split}.parquet", row_group_size=5)
    return {"kind": "parquet", "path": "hub_paths"}


def data_frame(root: Path) -> dict[str, object]:
    """As pandas: paths and labels in columns of a data frame, as parquet."""
    import pandas as pd

    folder = root / "frame"
    folder.mkdir()
    for split in COUNTS:
        frame = pd.DataFrame({"file": write_files(folder, split), "label": LABELS[split]})
        frame.to_parquet(folder / f"{split}.parquet", index=False)
    return {"kind": "parquet", "path": "frame", "image": "file"}


def csv(root: Path) -> dict[str, object]:
    """As pandas: the same as CSV, with its index."""
    import pandas as pd

    folder = root / "csv"
    folder.mkdir()
    frames = [
        pd.DataFrame({"path": write_files(folder, split), "label": LABELS[split], "split": split}) for split in COUNTS
    ]
    pd.concat(frames).to_csv(folder / "list.csv")
    return {"kind": "manifest", "path": "csv/list.csv"}


def image_folder(root: Path) -> dict[str, object]:
    """As torchvision's ImageFolder, for which rows have to lie in the order of the classes: so they are named."""
    folder = root / "image_folder"
    folder.mkdir()
    lines = []
    for split in COUNTS:
        for path, label in zip(write_files(folder, split), LABELS[split], strict=True):
            to = folder / split / str(label) / Path(path).name
            to.parent.mkdir(exist_ok=True)
            (folder / path).rename(to)
            lines.append({"path": to.relative_to(folder).as_posix(), "label": int(label), "split": split})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"kind": "manifest", "path": "image_folder/list.jsonl"}


def write_files(folder: Path, split: str) -> list[str]:
    """Pictures of a split as PNG files; their paths below the folder."""
    (folder / split).mkdir()
    paths = [f"{split}/{row:02}.png" for row in range(COUNTS[split])]
    for path, picture in zip(paths, PICTURES[split], strict=True):
        (folder / path).write_bytes(encoded(picture))
    return paths


def shards(root: Path) -> dict[str, object]:
    """As the package ``webdataset``: tar shards of ``KEY.png`` and ``KEY.cls``."""
    folder = root / "shards"
    folder.mkdir()
    for split, count in COUNTS.items():
        half = count // 2
        for shard in range(2):
            with tarfile.open(folder / f"{split}-{shard:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for row in range(shard * half, (shard + 1) * half):
                    add(tar, f"{row:08}.png", encoded(PICTURES[split][row]))
                    add(tar, f"{row:08}.cls", str(LABELS[split][row]).encode())
    return {"kind": "webdataset", "path": "shards"}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


FORMS: Mapping[str, Callable[[Path], dict[str, object]]] = {
    "medmnist": medmnist,
    "keras": keras,
    "cifar": cifar,
    "hub": hub,
    "hub, paths": hub_paths,
    "data frame": data_frame,
    "csv": csv,
    "json lines over class folders": image_folder,
    "saved": saved,
    "shards": shards,
}
