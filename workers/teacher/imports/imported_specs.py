"""Specifications of imported caches: how one is known, and whether it is what a job needs. Light: the API asks.

``preprocessing`` of an imported cache says so: ``{"imported": {"output_kind": ..., "top_k": ...}}``, and
``teacher_sha256`` is the digest of its logits: the same logits of the same samples are the same cache, wherever they
come from. What a client says about that is in its provenance.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import JsonValue

from store import CacheNotFound, CacheSpec, Catalog
from workers.config.cache import CacheOptions
from workers.config.cached_augmentation import describe_augmentation
from workers.config.job import Plan
from workers.config.teacher import SOFTMAX_KINDS, OutputKind
from workers.config.views import Augmentation, NoAugmentation, ResizedCrop, Views
from workers.data.preparation.decoded import KnownSplit
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob
from workers.events import Split

IMPORTED = "imported"
_PLAIN = Views(augmentation=NoAugmentation())


def imported_preprocessing(kind: OutputKind, top_k: int | None) -> dict[str, JsonValue]:
    """``preprocessing`` of an imported cache; ``top_k`` is None of whole rows."""
    return {IMPORTED: {"output_kind": kind, "top_k": top_k}}


def is_imported(spec: CacheSpec | None) -> bool:
    """Whether the logits of a cache were imported: no teacher of this service gives them.

    Of a cache whose spec cannot be read (None) nobody knows: it is not counted among them.
    """
    return spec is not None and IMPORTED in spec.preprocessing


def is_normalised(spec: CacheSpec) -> bool:
    """Whether the level of imported logits is lost to a softmax."""
    found = spec.preprocessing.get(IMPORTED)
    return isinstance(found, dict) and found.get("output_kind") in SOFTMAX_KINDS


def recipe_of_views(augmentation: Augmentation) -> Augmentation:
    """Augmentation without the size at which a network sees its boxes: of a cache of boxes, nobody knows it."""
    if isinstance(augmentation, ResizedCrop):
        return augmentation.model_copy(update={"size": None})
    return augmentation


def check_options(plan: Plan) -> None:
    """Refuse options of a job whose only logits are imported, and that would change nothing there.

    Raises:
        InvalidJob: naming the option.
    """
    if plan.evaluate:
        raise InvalidJob(
            "evaluate is true, and it measures a teacher, while `caches` names logits: their accuracy was told when "
            "they were imported"
        )
    if plan.cache.model_copy(update={"allow_lossy": False}) != CacheOptions():
        raise InvalidJob(
            "`cache` says how logits are stored, and those of `caches` are stored already: leave `cache` out, or "
            "import them once more with another `dtype` or `encoding`"
        )


def find_imported(caches: Mapping[Split, str], root: Path) -> dict[Split, CacheSpec]:
    """Specifications of the imported caches that a job names, by split.

    Args:
        root: of the caches.

    Raises:
        InvalidJob: one is not there, not complete, of another split, or was not imported; or it is lossy, and not of
            the training split.
    """
    if "train" not in caches:
        raise InvalidJob(
            f"`caches` names logits of {', '.join(caches)}, and students learn from those of train: add its cache"
        )
    found = {split: _find(split, key, root) for split, key in caches.items()}
    counts = {split: spec.classes for split, spec in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{split} {count}" for split, count in counts.items())
        raise InvalidJob(f"the caches have different numbers of classes ({told}): import logits of the same classes")
    return found


def _find(split: Split, key: str, root: Path) -> CacheSpec:
    try:
        entry = Catalog(root).get(key)
    except CacheNotFound:
        entry = None
    name = f"cache {key[:12]}"
    if entry is None or entry.spec is None or entry.state != "complete":
        state = "is not there" if entry is None else f"is {entry.state}"
        raise InvalidJob(
            f"{name}, which the job names for {split}, {state}: import its logits again (POST /v1/caches, or `retort "
            "cache import`)"
        )
    spec = entry.spec
    if not is_imported(spec):
        raise InvalidJob(
            f"{name} was made by the teacher with SHA-256 {spec.teacher_sha256[:12]}: name that in `teacher`, and the "
            "cache is found again; or export it and import that file, if the teacher is gone"
        )
    if spec.split != split:
        raise InvalidJob(f"{name} is of the {spec.split} split, and the job names it for {split}")
    if split != "train" and spec.is_lossy:
        raise InvalidJob(
            f"{name} has the encoding {_encoding(spec)}, which is lossy, and results are measured on the {split} "
            'split: import its logits with `encoding` "dense"'
        )
    return spec


def _encoding(spec: CacheSpec) -> str:
    return spec.encoding if isinstance(spec.encoding, str) else spec.encoding.kind


def _check_views(spec: CacheSpec, views: Views, held_out: Holdout | None, *, is_trained: bool) -> None:
    """Refuse logits of other views than the pictures that students see."""
    recipe = recipe_of_views(views.augmentation)
    wanted = (recipe.model_dump(mode="json"), views.seed, views.count)
    found = (dict(spec.augmentation), spec.augmentation_seed, spec.views)
    if wanted == found and held_out is not None and describe_augmentation(recipe, held_out) != found[0]:
        raise InvalidJob(
            f"cache {spec.key[:12]} has logits of views mixed with those of every sample, and the job holds "
            f"{held_out.holdout:g} of the {spec.split} split out, which may be mixed into none: leave `validation` "
            "out, or import logits of views that are not mixed"
        )
    # Of one plain picture the seed draws nothing.
    if wanted == found or (wanted[0] == found[0] == {"recipe": "none"} and wanted[2] == found[2]):
        return
    of_cache = Views.model_validate(
        {"augmentation": spec.augmentation, "seed": spec.augmentation_seed, "count": spec.views}
    )
    what = f"cache {spec.key[:12]} has logits of {_described(of_cache)}"
    if not is_trained:
        raise InvalidJob(f"{what}, and the {spec.split} split is measured on plain pictures: import logits of those")
    raise InvalidJob(
        f"{what}, and the students would see {_described(views)}: logits of one picture do not fit another. Say "
        f'`"views": {of_cache.model_dump_json(exclude={"fresh"})}` in the job, or import logits of its views'
    )


def _described(views: Views) -> str:
    recipe = views.augmentation.recipe
    return "the plain pictures" if recipe == "none" else f"{views.count} views of recipe {recipe}, seed {views.seed}"


def check_views(caches: Mapping[Split, CacheSpec], views: Views, held_out: Holdout | None) -> None:
    """Refuse imported logits of other views than those that students see.

    Args:
        caches: none of a classifier.
        views: of the training split; others are measured on plain pictures.
        held_out: of the training split; None holds none out.

    Raises:
        InvalidJob: naming the cache, with the views that it has.
    """
    for split, spec in caches.items():
        if split == "train":
            _check_views(spec, views, held_out, is_trained=True)
        else:
            _check_views(spec, _PLAIN, None, is_trained=False)


def check_classes(caches: Mapping[Split, CacheSpec], classes: int) -> None:
    """Refuse imported logits of another number of classes than the dataset's; 0 is not known. Raises InvalidJob."""
    for spec in caches.values():
        if classes and spec.classes != classes:
            raise InvalidJob(
                f"cache {spec.key[:12]} has logits of {spec.classes} classes, the dataset has {classes}: import logits "
                "of its classes"
            )


def check_member(caches: Mapping[Split, CacheSpec], splits: Collection[Split]) -> None:
    """Refuse imported logits that cannot be combined with those of other teachers: lossy ones, or not of all splits.

    Args:
        caches: of one of several teachers; none of a classifier.
        splits: that the job uses.

    Raises:
        InvalidJob: naming the cache, or the split.
    """
    if not caches:
        return
    if missing := [split for split in splits if split not in caches]:
        raise InvalidJob(
            f"one of several teachers is imported, without logits of {', '.join(missing)}: a combination needs those "
            "of every split that the job uses; import them, too"
        )
    for spec in caches.values():
        if spec.is_lossy:
            raise InvalidJob(
                f"cache {spec.key[:12]} has the encoding {_encoding(spec)}, and no row is combined of what that has "
                'left of others: import its logits with `encoding` "dense"'
            )


def check_content(caches: Mapping[Split, CacheSpec], splits: Mapping[Split, KnownSplit]) -> None:
    """Refuse imported logits of other pictures than those of the dataset.

    Args:
        splits: of the dataset, as far as their fingerprints are known.

    Raises:
        InvalidJob: naming the cache and the split.
    """
    for split, spec in caches.items():
        known = splits.get(split)
        if known is not None and spec.dataset_fingerprint != known.fingerprint:
            raise InvalidJob(
                f"cache {spec.key[:12]} has logits of other pictures than the {split} split of the job's dataset (its "
                f"{spec.samples:,} samples have the fingerprint {spec.dataset_fingerprint[:12]}, the dataset's "
                f"{known.samples:,} {known.fingerprint[:12]}): import logits of this dataset"
            )


def unmeasured_warnings(caches: Collection[Split], facts: Collection[Split]) -> list[str]:
    """Warn of splits that a job uses and no logits were imported of."""
    without = [split for split in facts if split not in caches]
    if not without:
        return []
    return [
        f"no logits of the {' and '.join(without)} split were imported: students are measured there, and their "
        "agreement with a teacher is not"
    ]
