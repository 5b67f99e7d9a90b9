"""What a job is made of: frozen pydantic models, light enough for the API process.

``Plan`` is what a client decides; ``JobSpec`` is a plan with its teacher resolved to a file;
``RunSpec`` is one (student, method, seed) of it. The upper layer embeds these and redefines none.
Unknown keys are refused everywhere, with the nearest known one. Units stand in the names; image
sizes are (height, width) in pixels.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, FailFast, Field, model_validator

from store import CacheSpec, Encoding, SparseEncoding
from workers.errors import InvalidJob
from workers.methods.catalog import MethodChoice
from workers.spec import AtMost, Config, Flag
from workers.students.catalog import check_student

# Strict, as in parts.py: "4" and true are mistakes, not numbers.
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=4096)]
Size = tuple[Side, Side]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(strict=True, ge=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]

RUNS_MAX = 1000
CHANNELS_MAX = 3
# The class of scikit-learn's digits with the fewest training pictures, the eights, has so many.
DIGITS_PER_CLASS_MAX = 140
MILESTONES_MAX = 100
# Within an epoch, unless the operator sets another.
CHECKPOINT_S = 60.0


class Spec(Config):
    """Base of every description: frozen, unknown keys refused by name."""

    @classmethod
    def _kind_of_key(cls) -> str:
        return f"field of {cls.__name__}"


# ----------------------------------------------------------------------------------------- teacher


class Preprocessing(Spec):
    """From picture to input: resize, order channels, ``x * scale``, ``(x - mean) / std``, lay out.

    Attributes:
        size: (height, width) in pixels the network wants; None keeps the picture's own. Of a view, both mean the box
        of the data set's picture resampled to that size, see ``teacher_augmentation``.
        mean: per channel, in units of the scaled picture (0..1 with the default scale).
        std: per channel, same unit, > 0.
        channels: order and number of the channels; grey pictures are repeated, colour ones turned
        to luma as needed.
        layout: ``nchw`` or ``nhwc``.
        scale: factor applied to the uint8 values before mean and std.
    """

    size: Size | None = None
    mean: Annotated[tuple[Real, ...], AtMost(CHANNELS_MAX)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Positive, ...], AtMost(CHANNELS_MAX)] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Positive = 1 / 255

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channel_count:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values, "
                f"channels={self.channels!r} needs {self.channel_count} of each"
            )
        return self

    @property
    def channel_count(self) -> int:
        return 1 if self.channels == "gray" else 3


class TeacherSpec(Spec):
    """An ONNX classifier on disk.

    Attributes:
        path: the file.
        sha256: of its bytes (64 hex digits); None lets the pipeline compute it.
        output: name of the output that holds the logits; None takes the only one.
    """

    path: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    output: str | None = None
    preprocessing: Preprocessing = Preprocessing()


# ---------------------------------------------------------------------------------------- data set


class DigitsDataset(Spec):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; every fifth of each class is the test split.

    Attributes:
        train_per_class: train on the first so many pictures of each class; None is all of them, 1,442 in the ten
            classes. The test split stays whole.
    """

    kind: Literal["digits"] = "digits"
    # Joined later, as ``Training.cuda_graph``.
    train_per_class: Annotated[int, Field(strict=True, ge=1, le=DIGITS_PER_CLASS_MAX)] | None = Field(
        None, exclude_if=lambda given: given is None
    )


class TorchvisionDataset(Spec):
    """A torchvision data set from local files below the data root; nothing is downloaded."""

    kind: Literal["cifar10", "cifar100", "mnist", "fashion_mnist"]
    path: RelativePath = "."


class FolderDataset(Spec):
    """``path/train/CLASS/*.jpg`` (or png ...) and ``path/test/CLASS/*``; classes alphabetically.

    Attributes:
        image_size: (height, width) every picture is resized to; None demands that all have one
        size.
        storage: ``decoded`` keeps a decoded copy, which is mapped; ``files`` keeps none and decodes a
        picture whenever it is wanted, for data larger than memory or disk. Both give the same bits,
        and so the same caches and weights.
    """

    kind: Literal["folder"] = "folder"
    path: RelativePath
    image_size: Size | None = None
    storage: Literal["decoded", "files"] = "decoded"


class NpzDataset(Spec):
    """One ``.npz`` of ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Images are uint8 [N, H, W] or [N, H, W, C], labels integers [N], ``class_names`` (optional) strings.
    """

    kind: Literal["npz"] = "npz"
    path: RelativePath


DatasetSpec = Annotated[DigitsDataset | TorchvisionDataset | FolderDataset | NpzDataset, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------- views


class NoAugmentation(Spec):
    """The plain picture; all views are equal, so one view is all there is."""

    recipe: Literal["none"] = "none"


class CropFlip(Spec):
    """Zero-pad by ``pad`` pixels, crop the old size at a random place, mirror every second one."""

    recipe: Literal["crop_flip"] = "crop_flip"
    pad: Annotated[int, Field(strict=True, ge=0, le=64)] = 4
    flip: Flag = True


class ResizedCrop(Spec):
    """Crop a random area of random aspect ratio, resize it to ``size``, mirror every second one.

    Attributes:
        size: (height, width) of the student's view; None keeps the picture's own. The teacher's has its own size, see
            ``teacher_augmentation``.
        scale: least and most area of the crop, as a fraction of the picture's.
        ratio: least and most width / height of the crop.
    """

    recipe: Literal["resized_crop"] = "resized_crop"
    size: Size | None = None
    scale: tuple[Positive, Annotated[float, Field(strict=True, gt=0.0, le=1.0)]] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Flag = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name} is ({low}, {high}); the first must not exceed the second")
        return self


Augmentation = Annotated[NoAugmentation | CropFlip | ResizedCrop, Field(discriminator="recipe")]


def output_size(recipe: Augmentation, height: int, width: int) -> Size:
    """(h, w) in pixels of a view of an H x W picture."""
    if isinstance(recipe, ResizedCrop) and recipe.size is not None:
        return recipe.size
    return height, width


def teacher_augmentation(recipe: Augmentation, size: Size | None, height: int, width: int) -> Augmentation:
    """The augmentation as the teacher sees it: the same boxes of the same pictures, resampled to the teacher's size.

    A box and its mirroring do not depend on the size of the view, so each network gets its own resampling of one box:
    the teacher is not given the student's view made larger, or smaller, once more. Where the view has the teacher's
    size anyway, and where boxes are not resampled (``none``, ``crop_flip``: views as large as the picture, which
    ``Preprocessing`` resizes), this is ``recipe`` itself. It is what a cache is known by, so students of different
    sizes share one.

    Args:
        recipe: of the student's views.
        size: (height, width) in pixels of the teacher's preprocessing; None is that of the data set's pictures.
        height, width: of the data set's pictures.
    """
    if not isinstance(recipe, ResizedCrop) or output_size(recipe, height, width) == (size or (height, width)):
        return recipe
    return recipe.model_copy(update={"size": size})


def thumbnail_warnings(dataset: DatasetSpec, size: Size | None) -> tuple[str, ...]:
    """A sentence if a data set is stored smaller than the teacher's input, so that no view can have its detail.

    Args:
        size: (height, width) in pixels of the teacher's preprocessing.
    """
    if size is None or not isinstance(dataset, FolderDataset) or dataset.image_size is None:
        return ()
    (height, width), (wanted_h, wanted_w) = dataset.image_size, size
    if height >= wanted_h and width >= wanted_w:
        return ()
    return (
        f"the data set's image_size is {height} x {width} pixels (height x width), the teacher's input {wanted_h} x "
        f"{wanted_w}: the teacher is given pictures that were made smaller and then enlarged, whole ones and views "
        f"alike. If the files are larger, set image_size to [{wanted_h}, {wanted_w}] and "
        "make the students' views small with `size` of the recipe resized_crop",
    )


class Views(Spec):
    """The boxes that teacher and students share, each at its own size: epoch e trains on view e mod count."""

    augmentation: Augmentation = NoAugmentation()
    count: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1
    seed: Seed = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.augmentation.recipe == "none" and self.count > 1:
            raise ValueError(
                f"count is {self.count}, but without augmentation all views are the same picture: "
                "use 1, or choose the recipe crop_flip or resized_crop"
            )
        return self


# ---------------------------------------------------------------------------------------- training


class Sgd(Spec):
    """Stochastic gradient descent with momentum; defaults are the CIFAR recipe of the KD papers."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: Flag = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        return self


class AdamW(Spec):
    """AdamW (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegative = 0.05


class StepSchedule(Spec):
    """Multiply the learning rate by ``gamma`` when each fraction of the epochs has passed.

    The default is the papers' 150 / 180 / 210 of 240 epochs.
    """

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[Fraction, ...], AtMost(MILESTONES_MAX)] = (0.625, 0.75, 0.875)
    gamma: Positive = 0.1


class CosineSchedule(Spec):
    """Half a cosine from the learning rate to ``final`` times it."""

    kind: Literal["cosine"] = "cosine"
    final: Fraction = 0.0


class Training(Spec):
    """How every run of a job is trained.

    Attributes:
        warmup_epochs: the learning rate rises linearly over so many epochs, step by step.
        label_smoothing: of the cross-entropy term alone.
        precision: ``float32``, ``tf32`` (float32 whose products have 10 bits of mantissa, on a GPU of compute
            capability 8.0 or more, elsewhere float32; result.json says which it was), ``bfloat16`` (autocast);
            ``auto`` is bfloat16 on a GPU where the student's layers are large enough for it to pay, else float32.
            Evaluation is always float32.
        device: of training and of inference, the teacher's: ``auto`` is CUDA when there is one; ``cpu`` takes no share
            of a GPU for either; ``cuda`` is refused where there is no GPU.
        cuda_graph: record a step once and replay it as one launch, on a GPU; ``auto`` goes on without where that
            cannot be done or gives other weights, ``on`` asks for a GPU.
        max_gradient_norm: clip the gradient's global norm; None leaves it.
        actors: processes that train one student together, each with its own share of the CPUs or its own GPU and
            with its part of every batch; for students and batches that are too large for one.
    """

    epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 240
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 64
    eval_batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 512
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="kind")] = Sgd()
    schedule: Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")] = StepSchedule()
    warmup_epochs: NonNegative = 0.0
    label_smoothing: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Joined later: an Idempotency-Key is known by the digest of a dump, and one from before is to be known after.
    cuda_graph: Literal["auto", "on", "off"] = Field("auto", exclude_if=lambda given: given == "auto")
    max_gradient_norm: Positive | None = None
    actors: Annotated[int, Field(strict=True, ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; it must stay below epochs, {self.epochs}")
        return self

    @model_validator(mode="after")
    def _a_row_for_each_actor(self) -> Self:
        if self.actors > self.batch_size:
            raise ValueError(
                f"actors is {self.actors} and batch_size {self.batch_size}: each needs a row of every batch"
            )
        return self


class CacheOptions(Spec):
    """How logits are kept.

    Attributes:
        dtype: of dense logits: ``float16`` (default, KL below 1e-6) or ``float32`` (exact).
        encoding: of the training split, which is the large one: ``dense``, ``uint8`` or sparse. The last two are lossy;
            the test split is always dense.
        allow_lossy: train although an encoding changes the direction of a method's gradient.
    """

    dtype: Literal["float16", "float32"] = "float16"
    encoding: Encoding = "dense"
    allow_lossy: Flag = False


def check_encoding(encoding: Encoding, classes: int) -> None:
    """Refuse an encoding that saves nothing for so many classes.

    Raises:
        InvalidJob: saying how it compares with dense rows.
    """
    if isinstance(encoding, SparseEncoding) and (refusal := encoding.refusal(classes)):
        raise InvalidJob(f"cache.encoding: {refusal}")


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class StudentSpec(Spec):
    """A student architecture; a bare name in JSON is accepted for it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _exists(self) -> Self:
        check_student(self.name)
        return self


Student = Annotated[StudentSpec, BeforeValidator(_named, json_schema_input_type=StudentSpec | str)]


# --------------------------------------------------------------------------------------------- job


class RunSpec(Spec):
    """One student to train: which network, by which method, from which seed."""

    index: int
    student: StudentSpec
    method: MethodChoice
    seed: Seed

    @property
    def name(self) -> str:
        return f"{self.student.name} {self.method.label} seed {self.seed}"


class Plan(Spec):
    """What a client decides about a job but for the teacher: its runs are all combinations.

    Attributes:
        group_size: where more runs wait than there is room for, at most so many of one seed are trained in one process
            on the same batches; 1 trains each apart. It changes no result.
        accept_teacher: use the teacher although the contract check doubts its class order, preprocessing, accuracy or
            kind of output; what it found becomes warnings.
    """

    name: Annotated[str, Field(max_length=200)] = ""
    dataset: DatasetSpec
    views: Views = Views()
    cache: CacheOptions = CacheOptions()
    students: Annotated[tuple[Student, ...], Field(min_length=1), AtMost(RUNS_MAX)]
    # The first wrong one ends it: each takes time to refuse, and its exceptions hold memory until all are told.
    methods: Annotated[tuple[MethodChoice, ...], FailFast(), Field(min_length=1), AtMost(RUNS_MAX)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AtMost(RUNS_MAX)] = (0,)
    training: Training = Training()
    group_size: Annotated[int, Field(strict=True, ge=1, le=64)] = 4
    # Joined later, as ``Training.cuda_graph``.
    accept_teacher: Flag = Field(False, exclude_if=lambda given: not given)

    @model_validator(mode="after")
    def _bounded_and_distinct(self) -> Self:
        runs = len(self.students) * len(self.methods) * len(self.seeds)
        if runs > RUNS_MAX:
            raise InvalidJob(f"the job has {runs} runs, at most {RUNS_MAX} are allowed: split it")
        for field in ("students", "methods", "seeds"):
            twice = next((value for value, count in Counter(getattr(self, field)).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{field} names {twice!r} twice; every run of a job must be different")
        return self

    @model_validator(mode="after")
    def _enough_views(self) -> Self:
        for method in self.methods:
            if method.expand().views > self.views.count:
                raise InvalidJob(
                    f"method {method.label!r} compares two views of each sample, and views.count is "
                    f"{self.views.count}: use 2 or more, with the recipe crop_flip or resized_crop"
                )
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is probably not meant, and is done all the same: a sentence each."""
        told = [(method.label, method.expand().shortfall(self.training.epochs)) for method in self.methods]
        return tuple(f"method {label!r}: {shortfall}" for label, shortfall in told if shortfall)

    @property
    def largest_group(self) -> int:
        """``group_size``, unless each run has processes of its own."""
        return self.group_size if self.training.actors == 1 else 1

    def runs(self) -> tuple[RunSpec, ...]:
        """Every run, students slowest and seeds fastest."""
        combinations = [(s, m, seed) for s in self.students for m in self.methods for seed in self.seeds]
        return tuple(
            RunSpec(index=index, student=student, method=method, seed=seed)
            for index, (student, method, seed) in enumerate(combinations)
        )


class JobSpec(Plan):
    """A plan with its teacher: what ``python -m workers.pipeline job.json`` and the engine take."""

    teacher: TeacherSpec


# ------------------------------------------------------------------------------------------- tasks


class Folders(Spec):
    """Where everything is kept: one root, a folder per kind.

    Attributes:
        data_dir: the service's own folder.
        data_root: the operator's data sets, read only.
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
        forwards: folder of the counters of what the teacher was run on, see ``forwards``; None does not count.
        sessions: how many workers run the teacher beside each other, this one included.
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
