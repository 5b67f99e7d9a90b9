"""A small real setting that many tests share: scikit-learn's digits, a teacher trained on them, its caches."""

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from store import CacheReader
from workers.config.job import JobSpec, StudentSpec
from workers.config.schedules import CosineSchedule
from workers.config.task import Folders, TrainingTask
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.training import AdamW, Training
from workers.config.views import CropFlip, Views
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.prepare import prepare_splits
from workers.data.preparation.prepared import Dataset
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.pipeline import train_supervised
from workers.teacher.build_caches import build_caches
from workers.teacher.cache_plan import CachePlan
from workers.teacher.plan_caches import plan_caches
from workers.teacher.teacher import Teacher

SMALL = Training(epochs=2, batch_size=64, optimizer=AdamW(lr=3e-3), schedule=CosineSchedule())
VIEWS = Views(augmentation=CropFlip(pad=1, flip=False), count=2)


@dataclass(frozen=True)
class Digits:
    """Everything a test needs to train on digits."""

    folders: Folders
    teacher_spec: TeacherSpec
    plan: CachePlan
    views: Views
    train: Dataset
    test: Dataset

    @property
    def preprocessing(self) -> Preprocessing:
        return self.teacher_spec.preprocessing

    def teacher(self) -> Teacher:
        return Teacher(self.teacher_spec.path, self.preprocessing, None, threads=1, device="cpu")

    def train_reader(self) -> CacheReader:
        return CacheReader(self.folders.caches, self.plan.train_cache)

    def job(self, *methods: str | Mapping[str, object], training: Training = SMALL, student: str = "cnn_s") -> JobSpec:
        return JobSpec(
            dataset=DigitsDataset(),
            views=self.views,
            students=(StudentSpec(name=student),),
            methods=tuple(parse_method(method) for method in methods),
            training=training,
            teacher=self.teacher_spec,
        )

    def order(
        self,
        method: str | Mapping[str, object],
        folder: Path,
        training: Training = SMALL,
        earlier: tuple[Path, ...] = (),
    ) -> TrainingTask:
        job = self.job(method, training=training)
        return self.plan.task_of_run(job, job.runs()[0], self.folders, folder, threads=1, earlier=earlier)


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the student that a run has left there, with its buffers."""
    return load_file(folder / "artifacts" / "student.safetensors")


def make_digits(root: Path) -> Digits:
    """Train the teacher (seconds) and fill its caches, on the CPU."""
    folders = Folders(data_dir=root / "data", data_root=root)
    model = train_supervised(
        DigitsDataset(),
        "cnn_m",
        Training(epochs=6, batch_size=64, optimizer=AdamW(lr=3e-3), schedule=CosineSchedule(), device="cpu"),
        data_root=root,
        work_dir=folders.data_dir,
        out_dir=root / "teacher",
    )
    teacher = TeacherSpec(path=model.onnx_path, preprocessing=model.preprocessing)
    job = JobSpec(
        dataset=DigitsDataset(),
        views=VIEWS,
        students=(StudentSpec(name="cnn_s"),),
        methods=(parse_method("kd"),),
        training=SMALL,
        teacher=teacher,
    )
    plan = plan_caches(job, folders, ignore, never, threads=1, device="cpu")
    build_caches(plan, folders, ignore, never, threads=1, device="cpu")
    data = prepare_splits(DigitsDataset(), ("train", "test"), folders.data_root, folders.datasets)
    return Digits(folders, teacher, plan, VIEWS, data["train"], data["test"])


def copied_digits(shared: Path, root: Path) -> Digits:
    """A copy of one setting below ``root``, which the first of several processes makes below ``shared``.

    The copy is the caller's own: tests train there, and take caches away.
    """
    shared.mkdir(parents=True, exist_ok=True)
    made, described = shared / "digits", shared / "digits.json"
    with (shared / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not described.exists():
            first = make_digits(made)
            both = {"teacher": first.teacher_spec.model_dump_json(), "plan": first.plan.model_dump_json()}
            described.write_text(json.dumps(both))
    shutil.copytree(made, root, dirs_exist_ok=True)
    both = {name: text.replace(str(made), str(root)) for name, text in json.loads(described.read_text()).items()}
    folders = Folders(data_dir=root / "data", data_root=root)
    data = prepare_splits(DigitsDataset(), ("train", "test"), folders.data_root, folders.datasets)
    teacher, plan = TeacherSpec.model_validate_json(both["teacher"]), CachePlan.model_validate_json(both["plan"])
    return Digits(folders, teacher, plan, VIEWS, data["train"], data["test"])
