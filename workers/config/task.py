"""Tasks of one process: blocks of a cache to infer, a run to train. Pure data, so that they can cross processes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from store import CacheSpec
from workers.config.job import RunSpec
from workers.config.teacher import TeacherSpec
from workers.config.training import Training
from workers.config.views import Views
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
    def jobs(self) -> Path:
        return self.data_dir / "jobs"


class TeacherAccuracy(Spec):
    """Top-1 of the teacher's cached logits against the labels, 0..1.

    Attributes:
        test: on the plain pictures of the test split.
        views: on the training views, over all of them: of the logits that students learn from.
    """

    test: float
    views: float


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


class TrainingTask(Spec):
    """One run for one worker to train.

    Attributes:
        train_cache: the teacher's cache over the training views; None trains without a teacher.
        test_cache: the teacher's cache over the plain test split, for agreement; None likewise.
        teacher_accuracy: what result.json tells of the teacher; it changes no training.
        folder: this attempt's own folder; nobody else writes there.
        earlier: the folders of earlier attempts, whose checkpoints may be taken up.
        told_epoch: the last epoch whose event has been stored; later ones of a checkpoint are told again.
        threads: of this process.
        has_gpu_share: the scheduler has given this process a share of a GPU: it is used, or the run fails.
        memory_fraction: of a GPU's memory that this process may take.
        checkpoint_s: within an epoch, a checkpoint is made after so many seconds.
        rank: of this process among the ``training.actors`` that train the student.
        stage: ``train`` ends with the last checkpoint and leaves no artifacts, ``export`` makes them of that checkpoint
            on the CPU and trains nothing, so that no GPU waits for it; ``all`` does both here.
    """

    folders: Folders
    run: RunSpec
    training: Training
    views: Views
    train_fingerprint: str
    test_fingerprint: str
    train_cache: CacheSpec | None
    test_cache: CacheSpec | None
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
