"""Tasks of one process: caches to complete, blocks to infer, a run to train. Pure data, so that they can be sent."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from store import CacheSpec
from workers.config.combination import TeacherWeight
from workers.config.export import Export
from workers.config.job import JobSpec, Plan, RunSpec
from workers.config.teacher import Preprocessing, TeacherReading, TeacherSpec
from workers.config.training import Training
from workers.config.views import Views
from workers.events import Split
from workers.spec import Flag, Spec

# Seconds between two checkpoints within an epoch, unless the operator sets another.
CHECKPOINT_S = 60.0


class Folders(Spec):
    """Folders of the data directory, and the data root.

    Attributes:
        data_dir: the service's own folder.
        data_root: the operator's datasets, read only.
    """

    data_dir: Path
    data_root: Path

    @property
    def caches(self) -> Path:
        return self.data_dir / "caches"

    @property
    def datasets(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def contracts(self) -> Path:
        return self.data_dir / "contracts"

    @property
    def smoke(self) -> Path:
        return self.data_dir / "smoke"

    @property
    def teachers(self) -> Path:
        return self.data_dir / "teachers"

    @property
    def student_files(self) -> Path:
        return self.data_dir / "student-files"

    @property
    def jobs(self) -> Path:
        return self.data_dir / "jobs"


class TeacherAccuracy(Spec):
    """Top-1 of the teacher's cached logits against the labels, 0..1.

    Attributes:
        test: on the plain pictures of the test split; None where it is not measured.
        views: on the training views, over all of them: of the logits that students learn from; None where nothing is
            trained.
        validation: on the plain pictures of the validation split; None without one.
    """

    test: float | None
    views: float | None
    validation: float | None = Field(None, exclude_if=lambda given: given is None)

    @property
    def measured(self) -> dict[Split, float]:
        """Accuracy by split: validation and test, as far as they are there."""
        both: dict[Split, float | None] = {"validation": self.validation, "test": self.test}
        return {split: top1 for split, top1 in both.items() if top1 is not None}


class TeacherIdentity(Spec):
    """A teacher as a bundle names it: what identifies it, and no path of this machine.

    Attributes:
        name: a person's; empty without one.
        sha256: of the ONNX file.
        output: name of the output that holds the logits.
        reading: what a client has stated about the output and about other inputs.
        caches: keys of the caches, where the logits were imported: then there is no file.
    """

    name: str = ""
    sha256: str
    output: str | None
    preprocessing: Preprocessing
    reading: TeacherReading = Field(TeacherReading(), exclude_if=lambda given: given == TeacherReading())
    caches: dict[Split, str] = Field({}, exclude_if=lambda given: not given)


class MemberIdentity(TeacherIdentity):
    """One of several teachers, as a bundle names it.

    Attributes:
        weight: in the combination.
    """

    weight: TeacherWeight


class Origin(Spec):
    """Job and teacher that a run was made from, for bundle.json and the model card.

    Attributes:
        job: the job as it would be posted for this run alone.
        teacher: whose logits it has learned from; the first one of several.
        teachers: all of several, whose combined logits it has learned from; none where there is one.
    """

    job: Plan
    teacher: TeacherIdentity
    teachers: tuple[MemberIdentity, ...] = Field((), exclude_if=lambda given: not given)


class CachesTask(Spec):
    """Caches of a job to plan and to complete.

    Attributes:
        gpu_share: of each GPU that inference takes at least, as a run does; 1 has a GPU for itself; 0 is the CPU.
        quota_bytes: see ``build_caches.reserve_caches``.
        forwards, confine_on_gpu: see ``InferenceTask``.
    """

    job: JobSpec
    folders: Folders
    gpu_share: float = 0.0
    quota_bytes: int = 0
    forwards: Path | None = None
    confine_on_gpu: bool = True


class InferenceTask(Spec):
    """Blocks of one cache for one worker to infer: pure data, so that it can cross processes.

    Attributes:
        threads: of one run of the teacher on the CPU.
        load_threads: that draw views and preprocess pictures beside it.
        device: ``cuda`` where the worker has a share of a GPU: then the CPU is not taken instead.
        memory_fraction: of a GPU's memory that the worker may take.
        forwards: folder of the counters of forward passes, see ``forwards``; None does not count.
        sessions: how many workers may run a teacher beside each other, of other jobs as well, this one included.
        confine_on_gpu: False leaves the teacher's process on a GPU its system calls and files.
    """

    folders: Folders
    teacher: TeacherSpec
    spec: CacheSpec
    threads: Annotated[int, Field(strict=True, ge=1)]
    load_threads: Annotated[int, Field(strict=True, ge=1)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_fraction: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 256
    forwards: Path | None = None
    sessions: Annotated[int, Field(strict=True, ge=1)] = 1
    confine_on_gpu: bool = True


class ExtendedRun(Spec):
    """Run that has ended and that a task goes on from: what its checkpoint was made for, and where that is.

    Attributes:
        index: among the runs of its job, which the checkpoint is known by, too.
        folder: with the checkpoint, which stays.
    """

    run: str
    index: Annotated[int, Field(strict=True, ge=0)]
    training: Training
    views: Views
    folder: Path


class TrainingTask(Spec):
    """One run for one worker to train.

    Attributes:
        train_cache: the teacher's cache over the training views; None trains without a teacher.
        test_cache: the teacher's cache over the plain test split, for agreement; None likewise.
        validation_cache: of the plain validation split.
        test_fingerprint: None where nothing is measured on the test split.
        validation_fingerprint: None without a validation split. Of a holdout it is rows of the training split, which
            are not trained on.
        teacher_accuracy: of the teacher, for result.json; it changes no training.
        folder: this attempt's own folder; nobody else writes there.
        earlier: the folders of earlier attempts, whose checkpoints may be taken up.
        told_epoch: the last epoch whose event has been stored; the events of a checkpoint's later ones are sent again.
        threads: of this process.
        has_gpu_share: the scheduler has given this process a share of a GPU: it is used, or the run fails.
        memory_fraction: of a GPU's memory that this process may take.
        checkpoint_s: within an epoch, a checkpoint is made after so many seconds.
        rank: of this process among the ``training.actors`` that train the student.
        stage: ``train`` ends with the last checkpoint and leaves no artifacts, ``export`` makes them of that checkpoint
            on the CPU and trains nothing, so that no GPU waits for it; ``all`` does both here.
        export: what it leaves beside its weights.
        origin: what bundle.json and the model card tell; None where no job was posted.
        extends: the run whose first epochs these are; None trains from the first epoch on.
    """

    folders: Folders
    run: RunSpec
    training: Training
    views: Views
    train_fingerprint: str
    test_fingerprint: str | None
    train_cache: CacheSpec | None
    test_cache: CacheSpec | None
    validation_fingerprint: str | None = Field(None, exclude_if=lambda given: given is None)
    validation_cache: CacheSpec | None = Field(None, exclude_if=lambda given: given is None)
    teacher_accuracy: TeacherAccuracy | None = None
    folder: Path
    earlier: tuple[Path, ...] = ()
    told_epoch: Annotated[int, Field(strict=True, ge=0)] = 0
    threads: Annotated[int, Field(strict=True, ge=1)]
    has_gpu_share: Flag = False
    memory_fraction: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
    checkpoint_s: Annotated[float, Field(strict=True, gt=0.0)] = CHECKPOINT_S
    rank: Annotated[int, Field(strict=True, ge=0)] = 0
    stage: Literal["all", "train", "export"] = "all"
    export: Export = Export()
    origin: Origin | None = None
    extends: ExtendedRun | None = Field(None, exclude_if=lambda given: given is None)
