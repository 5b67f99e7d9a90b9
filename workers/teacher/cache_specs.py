"""Specifications of a job's caches, and so their keys, from what is known of teacher and data. Light: no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pydantic import JsonValue

from store import CacheSpec, Encoding
from store.spec import StoredKind
from workers.config.job import Plan
from workers.config.teacher import Preprocessing
from workers.config.views import NoAugmentation, Views, teacher_augmentation
from workers.data.decoded import KnownSplit
from workers.events import Split


class KnownTeacher(NamedTuple):
    """Facts about a teacher that are part of a cache's identity.

    Attributes:
        output: name of the graph's output.
        classes: of the dataset, and columns that are taken of the output.
        columns: numbers of these columns, in the order of the classes; None takes all of the output as they come.
        inputs: values of the graph's scalar inputs.
    """

    sha256: str
    output: str
    output_kind: StoredKind
    classes: int
    preprocessing: Preprocessing
    columns: tuple[int, ...] | None = None
    inputs: Mapping[str, JsonValue] = MappingProxyType({})


def views_of_teacher(job: Plan, preprocessing: Preprocessing, height: int, width: int) -> Views:
    """Training views as the teacher sees them; the data's pictures have ``height`` x ``width`` pixels.

    Fresh views are of runs without a teacher.
    """
    recipe = teacher_augmentation(job.views.augmentation, preprocessing.size, height, width)
    return job.views.model_copy(update={"augmentation": recipe, "fresh": None})


def cache_specs(job: Plan, teacher: KnownTeacher, splits: Mapping[Split, KnownSplit]) -> dict[Split, CacheSpec]:
    """Specification of the cache of each of these splits.

    The encoding is for the training split alone: the other caches are small, and results are measured on them.
    """
    train = splits["train"]
    seen = views_of_teacher(job, teacher.preprocessing, train.height, train.width)
    plain = Views(augmentation=NoAugmentation())

    def spec(split: Split, views: Views, encoding: Encoding) -> CacheSpec:
        return CacheSpec(
            teacher_sha256=teacher.sha256,
            teacher_output=teacher.output,
            output_kind=teacher.output_kind,
            dataset_fingerprint=splits[split].fingerprint,
            split=split,
            samples=splits[split].samples,
            classes=teacher.classes,
            preprocessing=teacher.preprocessing.model_dump(mode="json"),
            augmentation=views.augmentation.model_dump(mode="json"),
            augmentation_seed=views.seed,
            views=views.count,
            dtype=job.cache.dtype if encoding == "dense" else "float32",
            encoding=encoding,
            columns=teacher.columns,
            teacher_inputs=dict(teacher.inputs),
        )

    return {
        split: spec(split, seen, job.cache.encoding) if split == "train" else spec(split, plain, "dense")
        for split in splits
    }
