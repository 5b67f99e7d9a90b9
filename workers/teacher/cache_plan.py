"""Cache plan of a job: the specifications of its caches, as inference completes them and its runs are trained on them.

Light: the API asks for specifications, the engine keeps plans and makes the tasks of runs; neither loads torch.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, JsonValue

from store import CacheSpec, Encoding
from store.spec import StoredKind
from workers.config.cached_augmentation import describe_augmentation
from workers.config.combination import Combination, TeacherWeight
from workers.config.job import JobSpec, Plan, RunSpec
from workers.config.task import (
    CHECKPOINT_S,
    ExtendedRun,
    Folders,
    MemberIdentity,
    Origin,
    TeacherAccuracy,
    TeacherIdentity,
    TrainingTask,
)
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.views import NoAugmentation, Views, teacher_augmentation
from workers.data.preparation.decoded import KnownSplit
from workers.events import Split
from workers.methods.catalog import MethodChoice
from workers.spec import Spec


class EncodingCheck(Spec):
    """Check of a lossy cache's encoding: the methods that will read it, and for how many epochs.

    Attributes:
        allow_lossy: say what was found, and refuse nothing.
    """

    methods: tuple[MethodChoice, ...]
    epochs: int
    allow_lossy: bool = False

    @classmethod
    def of(cls, job: JobSpec) -> Self:
        """The check for the methods of a job that read a teacher's logits."""
        methods = tuple(method for method in job.all_methods if method.expand().needs_teacher)
        return cls(methods=methods, epochs=job.training.epochs, allow_lossy=job.cache.allow_lossy)


class MemberPlan(Spec):
    """One of several teachers, and its own cache of each split that the job uses.

    Attributes:
        weight, name: as of ``WeightedTeacher``.
    """

    teacher: TeacherSpec
    weight: TeacherWeight
    name: str = ""
    caches: dict[Split, CacheSpec]


class CacheBuild(NamedTuple):
    """A cache that is to be completed: by its teacher, or of the rows of others.

    Attributes:
        teacher: whose rows it holds; None for a combined cache, and an imported one.
        members: that have to be complete before; none of one teacher's, and of an imported one.
    """

    spec: CacheSpec
    teacher: TeacherSpec | None
    members: "tuple[CacheBuild, ...]" = ()


class CachePlan(Spec):
    """Caches of a job, one of each split that it uses, and facts about its teacher; JSON, to be kept and passed on.

    Attributes:
        teacher: the first one of several.
        contract_forwards: pictures that the preflight has run through the teacher now.
        accuracy: of the teacher, once the caches are complete.
        validation_cache: of the dataset's own validation split, or of the holdout's plain pictures.
        evaluates: the training split is not inferred: the job trains nothing.
        guard: the check of the training split's cache before most of it is inferred; None for a dense one.
        members: several teachers with their caches, which the job's own are combined of; none where there is one.
        combine: how; None is the mean of the logits.
        fingerprints: of the splits that the job uses, where imported logits lack some: students are measured there,
            and not compared with a teacher.
    """

    teacher: TeacherSpec
    train_cache: CacheSpec
    test_cache: CacheSpec | None
    contract_forwards: int
    guard: EncodingCheck | None = None
    accuracy: TeacherAccuracy | None = None
    validation_cache: CacheSpec | None = None
    evaluates: bool = False
    members: tuple[MemberPlan, ...] = Field((), exclude_if=lambda given: not given)
    combine: Combination | None = Field(None, exclude_if=lambda given: given is None)
    fingerprints: dict[Split, str] = Field({}, exclude_if=lambda given: not given)

    @property
    def builds(self) -> tuple[CacheBuild, ...]:
        """The job's own caches, in the order in which they are built: the small ones show mistakes early."""
        own: dict[Split, CacheSpec | None] = {
            "validation": self.validation_cache,
            "test": self.test_cache,
            "train": None if self.evaluates else self.train_cache,
        }
        return tuple(self._build(split, spec) for split, spec in own.items() if spec is not None)

    def _build(self, split: Split, spec: CacheSpec) -> CacheBuild:
        if not self.members:
            return _own_build(spec, self.teacher)
        members = tuple(_own_build(member.caches[split], member.teacher) for member in self.members)
        return CacheBuild(spec, None, members)

    def fingerprint(self, split: Split) -> str | None:
        """Fingerprint of a split that the job uses; None if it uses none."""
        of_split = {"train": self.train_cache, "validation": self.validation_cache, "test": self.test_cache}
        spec = of_split[split]
        return self.fingerprints.get(split) if spec is None else spec.dataset_fingerprint

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """Every cache, those of several teachers before the one that is combined of them."""
        return tuple(each.spec for build in self.builds for each in (*build.members, build))

    def task_of_run(
        self,
        job: JobSpec,
        run: RunSpec,
        folders: Folders,
        folder: Path,
        *,
        threads: int,
        earlier: tuple[Path, ...] = (),
        told_epoch: int = 0,
        gpu_share: float = 0.0,
        checkpoint_s: float = CHECKPOINT_S,
        stage: Literal["all", "train", "export"] = "all",
    ) -> TrainingTask:
        """The task of one run of the job, to be trained on these caches in ``folder``.

        Args:
            gpu_share: of a GPU and its memory that each process is given; 0 leaves the device to the process.
        """
        return TrainingTask(
            folders=folders,
            run=run,
            training=job.training.of_student(run.student.name),
            views=job.views_of(run),
            train_fingerprint=self.train_cache.dataset_fingerprint,
            test_fingerprint=self.fingerprint("test"),
            validation_fingerprint=self.fingerprint("validation"),
            train_cache=self.train_cache,
            test_cache=self.test_cache,
            validation_cache=self.validation_cache,
            teacher_accuracy=self.accuracy,
            folder=folder,
            earlier=earlier,
            told_epoch=told_epoch,
            threads=threads,
            has_gpu_share=gpu_share > 0.0,
            memory_fraction=gpu_share or 1.0,
            checkpoint_s=checkpoint_s,
            stage=stage,
            export=job.export,
            extends=_extended(job, run, folders),
            origin=self._origin_of(job, run),
        )

    def _origin_of(self, job: JobSpec, run: RunSpec) -> Origin:
        """Job and teachers of a run, for its bundle."""
        return Origin(
            job=job.of_run(run),
            teacher=TeacherIdentity(
                **_identity(self.teacher) | ({} if self.members else {"sha256": self.train_cache.teacher_sha256}),
                name=self.members[0].name if self.members else job.teacher_name,
            ),
            teachers=tuple(
                MemberIdentity(**_identity(member.teacher), name=member.name, weight=member.weight)
                for member in self.members
            ),
        )


def _extended(job: JobSpec, run: RunSpec, folders: Folders) -> ExtendedRun | None:
    if job.extends is None:
        return None
    before = job.model_copy(update={"training": job.extends.training})
    checkpoint = folders.data_dir / job.extends.checkpoint
    return ExtendedRun(
        run=job.extends.run,
        index=job.extends.index,
        training=before.training.of_student(run.student.name),
        views=before.views_of(run),
        folder=checkpoint.parent,
    )


def _own_build(spec: CacheSpec, teacher: TeacherSpec) -> CacheBuild:
    return CacheBuild(spec, None if teacher.caches else teacher)


def _identity(teacher: TeacherSpec) -> dict[str, Any]:
    return {
        "caches": teacher.caches,
        "sha256": teacher.sha256,
        "output": teacher.output,
        "preprocessing": teacher.preprocessing,
        "reading": teacher.reading,
    }


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
            augmentation=describe_augmentation(views.augmentation, job.validation),
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
