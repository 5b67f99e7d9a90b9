"""Training options of a job: optimizer, schedule, batch sizes, precision. Durations are epochs."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.schedules import RESTARTS_MAX, OneCycleSchedule, Phase, Restart, Schedule, StepSchedule
from workers.config.validation import EarlyStopping, SelectionMetric
from workers.spec import AtMost, Flag, NonNegative, Positive, Spec

Momentum = Annotated[float, Field(strict=True, ge=0.0, lt=1.0, allow_inf_nan=False)]


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


class Adam(Spec):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) as ``torch.optim.Adam``: weight decay is L2, added to the gradient."""

    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


class RmsProp(Spec):
    """RMSprop (Tieleman & Hinton 2012) as ``torch.optim.RMSprop``: eps is added after the root, L2 to the gradient.

    Its usual place are ImageNet recipes of mobile networks; torchvision's of MobileNetV3 has lr 0.064, alpha 0.9, eps
    0.0316, momentum 0.9 and weight_decay 1e-5.
    """

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Positive = 0.01
    alpha: Momentum = 0.99
    eps: Positive = 1e-8
    momentum: Momentum = 0.0
    centered: Flag = False
    weight_decay: NonNegative = 0.0


class Ema(Spec):
    """Exponential moving average of a student's weights, evaluated beside them after each epoch.

    After every step each average becomes decay x average + (1 - decay) x weight, running statistics of batch
    normalisation included, as timm's ``ModelEmaV3`` does; it begins as the student's first weights.

    Attributes:
        decay: of the average in a step.
        export: whose weights leave the run: the average (``ema``), or the weights that are trained (``trained``).
    """

    decay: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.9999
    export: Literal["ema", "trained"] = "ema"


class Training(Spec):
    """Training options that all runs of a job share.

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
        student_lr: learning rate of students that need another than the optimizer's, by name.
        early_stopping: by a metric of the validation split; the schedule stays that of all ``epochs``.
        keep: whose weights leave the run: those of the ``last`` epoch, or of the ``best`` on the validation split, by
            the metric of ``early_stopping``, else top-1.
        keep_logits: leave the student's logits on the validation and test splits, ``logits.safetensors``.
        calibrated_output: give ``student.onnx`` a second output, ``probabilities``: softmax of the logits at the
            temperature that is fitted on the validation split.
        ema: average the weights; None does not.
        no_decay: parameters that weight decay leaves alone: none, or those of norms and biases (``norm_and_bias``).
        accumulate: compute each batch in so many parts, one after the other, and add their gradients.
        drop_last: leave an epoch's last batch out if it is smaller than the others.
        drop_path: rate of stochastic depth (drop path) in the deepest block; None is the network's own.
        keep_checkpoint: keep the last checkpoint of a run that has succeeded, so that it can be extended to more
            epochs; it takes two or three times the weights' bytes.
        restarts: warm restarts of the learning rate, in the order of their epochs; ``schedule`` is that of the epochs
            before the first.
    """

    epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 240
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 64
    eval_batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 512
    optimizer: Annotated[Sgd | AdamW | Adam | RmsProp, Field(discriminator="kind")] = Sgd()
    schedule: Schedule = StepSchedule()
    warmup_epochs: NonNegative = 0.0
    label_smoothing: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Joined later: an Idempotency-Key is known by the digest of a dump, and one from before is to be known after.
    cuda_graph: Literal["auto", "on", "off"] = Field("auto", exclude_if=lambda given: given == "auto")
    max_gradient_norm: Positive | None = None
    actors: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    early_stopping: EarlyStopping | None = Field(None, exclude_if=lambda given: given is None)
    keep: Literal["last", "best"] = Field("last", exclude_if=lambda given: given == "last")
    keep_logits: Flag = Field(True, exclude_if=lambda given: given)
    calibrated_output: Flag = Field(False, exclude_if=lambda given: not given)
    student_lr: Annotated[dict[str, Positive], Field(max_length=1000)] = Field({}, exclude_if=lambda given: not given)
    ema: Ema | None = Field(None, exclude_if=lambda given: given is None)
    no_decay: Literal["none", "norm_and_bias"] = Field("none", exclude_if=lambda given: given == "none")
    accumulate: Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(1, exclude_if=lambda given: given == 1)
    drop_last: Flag = Field(False, exclude_if=lambda given: not given)
    drop_path: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] | None = Field(
        None, exclude_if=lambda given: given is None
    )
    keep_checkpoint: Flag = Field(False, exclude_if=lambda given: not given)
    restarts: Annotated[tuple[Restart, ...], AtMost(RESTARTS_MAX)] = Field((), exclude_if=lambda given: not given)

    @property
    def selection_metric(self) -> SelectionMetric:
        """Metric of the validation split by which the best epoch is chosen."""
        return self.early_stopping.metric if self.early_stopping is not None else "top1"

    @property
    def leaves_average(self) -> bool:
        """Whether the weights that leave a run are the moving average."""
        return self.ema is not None and self.ema.export == "ema"

    @property
    def selected_by(self) -> str:
        """Metric in a line of metrics.jsonl by which the best epoch is chosen: of the weights that leave."""
        return f"validation_{'ema_' if self.leaves_average else ''}{self.selection_metric}"

    @property
    def needs_validation(self) -> str | None:
        """The option that needs a validation split; None if none does."""
        if self.early_stopping is not None:
            return "training.early_stopping"
        if self.calibrated_output:
            return "training.calibrated_output"
        return "training.keep 'best'" if self.keep == "best" else None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Its epochs as the restarts part them; one without any."""
        ends = [*(restart.after_epochs for restart in self.restarts), self.epochs]
        first = Phase(0, ends[0], self.optimizer.lr, self.schedule, warmup_epochs=self.warmup_epochs)
        later = zip(self.restarts, ends[1:], strict=True)
        return (first, *(Phase(each.after_epochs, end, each.learning_rate, each.schedule) for each, end in later))

    @model_validator(mode="after")
    def _restarts_part_the_epochs(self) -> Self:
        after = [restart.after_epochs for restart in self.restarts]
        if any(one >= other for one, other in pairwise((0, *after, self.epochs))):
            raise ValueError(
                f"restarts are after {after} epochs; each must come after the one before it, and below epochs, "
                f"{self.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        first = self.phases[0]
        if self.warmup_epochs >= first.end and self.warmup_epochs > 0:
            limit = f"the first restart, after {first.end}" if self.restarts else f"epochs, {first.end}"
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; it must stay below {limit}")
        return self

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup_epochs > 0 and isinstance(self.schedule, OneCycleSchedule):
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, and the schedule one_cycle begins with a rise of its own: "
                "set warmup_epochs to 0, and schedule.pct_start for that rise"
            )
        return self

    @model_validator(mode="after")
    def _rows_for_each_part(self) -> Self:
        if self.accumulate * self.actors > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}, actors {self.actors} and batch_size {self.batch_size}: each part of "
                "a batch needs a row in each process. batch_size is that of an update, all parts together"
            )
        return self

    @model_validator(mode="after")
    def _a_row_for_each_actor(self) -> Self:
        if self.actors > self.batch_size:
            raise ValueError(
                f"actors is {self.actors} and batch_size {self.batch_size}: each needs a row of every batch"
            )
        return self

    def of_student(self, name: str) -> Self:
        """These options for one student: its learning rate is the optimizer's."""
        if not self.student_lr:
            return self
        lr = self.student_lr.get(name, self.optimizer.lr)
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"lr": lr}), "student_lr": {}})
