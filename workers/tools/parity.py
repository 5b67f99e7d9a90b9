"""Parity of training on cached logits and with the live teacher: their losses and gradients, step by step.

A student is trained for an epoch on a cache, as ``train`` would: same first weights, order and boxes, on the teacher's
resampling of them, for a cache does not know the size of a job's own views. In every step
its one forward pass is differentiated for the loss on the cached rows, and again for the loss on the teacher's present
logits for the same pictures; then the student moves along the cached gradient. The pass is shared, so
every difference comes from the teacher's rows. The arithmetic is training's float32; the student is on the CPU.

``BOUND`` is allowed for every step's loss and gradient, against the live logits *in the cache's dtype* with
the statistics of the unrounded ones. So a float32 cache is compared with the live teacher itself. A float16 cache
differs from that by rounding, which the report shows beside it, and must differ by nothing else: how much rounding may
do needs no bound, and none would be tight, for methods that rank classes jump where rounding makes a tie.

On one machine's CPU nothing else is left: ONNX Runtime gave the same bits there for every batch size and number of
threads tried (convolutions, MatMul, Gemm). The live statistics are summed in float64, as the cache's are; summed in
float32 they alone would move the gradient of ``atkd`` by 1.5e-6, which is the live side's error and not the cache's.
Another provider or processor may give logits other last bits; the verdict then says so.

Shapes: B batch, C classes, P numbers that are trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import SGD

from store import CacheReader, CacheSpec, Catalog
from workers.augmentation.apply import to_input
from workers.config.cached_augmentation import read_recipe
from workers.config.task import Folders, InferenceTask
from workers.config.teacher import TeacherSpec
from workers.config.training import Sgd, Training
from workers.config.views import Views, is_mixed, output_size
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.errors import InvalidMethod, InvalidTeacher, LossyCache
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.method import Method
from workers.methods.papers.base import Preset
from workers.objective.objective import objective_of
from workers.objective.statistics import row_statistics
from workers.objective.view import View
from workers.students.build import build_student
from workers.teacher.cache_statistics import read_cache_statistics
from workers.teacher.cached_views import CachedViews
from workers.teacher.combined_cache import members_of, name_members
from workers.teacher.encoding_check import describe
from workers.teacher.inference import open_teacher
from workers.teacher.plan_checks import identify
from workers.teacher.teacher import Teacher
from workers.tools.parity_report import LogitDifferences, ParityComparison, ParityReport, Spread
from workers.training.feed.batches import TrainingBatch, student_preprocessing
from workers.training.training_feed import TrainingFeed

StepProgress = Callable[[int, int], None]
"""Called with (steps done, steps in all) after every step."""


def check_parity(
    data_dir: Path,
    key: str,
    preset: Preset,
    *,
    student: str = "resnet8",
    batch_size: int = 64,
    seed: int = 0,
    epoch: int = 1,
    steps: int | None = None,
    threads: int = 1,
    progress: StepProgress = lambda done, total: None,
) -> ParityReport:
    """Train for one epoch on a cache and compare every step with the same step under the live teacher.

    Args:
        data_dir: the service's folder, with ``caches``, ``datasets`` and ``teachers``.
        key: of a complete cache, or the unambiguous beginning of one.
        preset: the method.
        student: a name of the catalogue; it starts from the weights that a run of this seed would.
        seed: of the first weights and of the order.
        epoch: from 1; sets the order, the view and the method's warm-up. The student is new, whichever it is.
        steps: stop after so many; None for the whole epoch.
        threads: of the teacher and of the student, which take turns.

    Raises:
        LossyCache: its rows are not what the teacher said.
        InvalidMethod: the method has no use for a teacher in this epoch, or for a cache of so few views.
        InvalidTeacher, InvalidDataset: what the cache was made from is gone or has changed.
        UnknownName, InvalidJob: the student is none, or cannot take these pictures.
        NotFinite: a loss is not a number.
        store.StoreError: there is no such cache, or it is incomplete or damaged.
    """
    folders = Folders(data_dir=data_dir, data_root=data_dir)
    reader = CacheReader.from_key(folders.caches, Catalog(folders.caches).resolve(key))
    spec, method = reader.spec, preset.expand()
    if members_of(spec):
        raise InvalidTeacher(
            f"cache {spec.key[:12]} is combined of the caches {name_members(spec)}, and no teacher gives its rows: "
            "check those instead"
        )
    if spec.is_lossy:
        raise LossyCache(
            f"cache {spec.key[:12]} has the encoding {describe(spec)}, which is not meant to train as the live teacher "
            "does: check a dense cache, or `retort cache verify` this one"
        )
    _check_method(method, spec, epoch)
    teacher = _open_teacher(folders, spec, threads)
    dataset = open_prepared(folders.datasets, spec.dataset_fingerprint).numbered(spec.classes)
    views = CachedViews.of(spec, dataset)
    plan = views.views
    torch.set_num_threads(threads)
    trained = _StudentInTraining(dataset, plan, student=student, method=method, seed=seed)
    feed = TrainingFeed(
        dataset,
        plan,
        reader,
        batch_size,
        seed=seed,
        device=torch.device("cpu"),
        views_per_step=method.views,
        partners_P=views.partners_P,
    )
    total = min(feed.steps, steps or feed.steps)
    found = read_cache_statistics(reader, method.cache_statistics)
    over_cache = {statistic: torch.from_numpy(values) for statistic, values in found.items()}
    logits, rows, loss = LogitDifferences(), 0, 0.0
    beside_live, beside_rounded = _Differences(), _Differences()
    for done, batch in enumerate(islice(feed.epoch(epoch - 1), total), start=1):
        cached, live, rounded = [], [], []
        index_B = batch.rows.numpy()
        for place, seen in enumerate(batch.views):
            z_BC = trained.forward(seen.images)
            # Of the dataset's pictures: the teacher may resample a box in another way than students do.
            view = plan.view(epoch - 1, place)
            live_BC = torch.from_numpy(teacher.run(teacher.preprocess_views(*views.take(dataset, view, index_B))))
            statistics = row_statistics(live_BC.double())
            cached.append(View(z_BC, seen.teacher_logits, seen.teacher_statistics, mixed=seen.mixed))
            live.append(View(z_BC, live_BC, statistics, mixed=seen.mixed))
            rounded.append(View(z_BC, live_BC.half(), statistics, mixed=seen.mixed))
            assert seen.teacher_logits is not None
            logits.add(seen.teacher_logits, live_BC)
        step = trained.differentiate(cached, batch, epoch, over_cache)
        beside_live.add(step, trained.differentiate(live, batch, epoch, over_cache))
        if spec.dtype == "float16":
            beside_rounded.add(step, trained.differentiate(rounded, batch, epoch, over_cache))
        trained.move(step)
        rows += len(batch.labels)
        loss += step.loss * len(batch.labels)
        progress(done, total)
    return ParityReport(
        key=spec.key,
        student=student,
        method=preset.label,
        epoch=epoch,
        steps=total,
        rows=rows,
        loss=loss / rows,
        dtype=spec.dtype,
        provider=teacher.provider,
        live=beside_live.summary(),
        rounded=beside_rounded.summary() if spec.dtype == "float16" else None,
        logits=logits,
    )


def _check_method(method: Method, spec: CacheSpec, epoch: int) -> None:
    """Refuse a method that would compare nothing, or views that the cache does not have."""
    _, scale = method.factors(epoch)
    if scale == 0 or not any(term.weight for term in method.terms):
        raise InvalidMethod(
            f"method {method.name!r} learns from labels alone in epoch {epoch}, so it has nothing to compare: "
            "take one that distils, or an earlier epoch"
        )
    if method.one_label_readers and is_mixed(read_recipe(spec.augmentation)):
        raise InvalidMethod(
            f"method {method.name!r} needs the one true class of each picture "
            f"({' and '.join(method.one_label_readers)}), and the views of cache {spec.key[:12]} are mixed: take "
            "another method, or another cache"
        )
    if method.views > spec.views:
        raise InvalidMethod(
            f"method {method.name!r} compares two views of each sample, and cache {spec.key[:12]} has one: "
            "take the cache of a job whose views.count is 2 or more"
        )


def _open_teacher(folders: Folders, spec: CacheSpec, threads: int) -> Teacher:
    """Open the teacher that the cache was made with, ready to run as for its inference."""
    kept = TeacherSpec.model_validate(
        {
            "path": folders.teachers / f"{spec.teacher_sha256}.onnx",
            "sha256": spec.teacher_sha256,
            "output": spec.teacher_output,
            "preprocessing": spec.preprocessing,
            "input_values": spec.teacher_inputs,
        }
    )
    return open_teacher(InferenceTask(folders=folders, teacher=identify(kept), spec=spec, threads=threads))


@dataclass(frozen=True)
class _StudentStep:
    """One loss and its gradient by everything that is trained, a tensor for each parameter."""

    loss: float
    gradients: tuple[Tensor, ...]


class _StudentInTraining:
    """Student with the method's learned temperatures and their optimizer, plain SGD with a job's defaults."""

    def __init__(self, dataset: Dataset, plan: Views, student: str, method: Method, seed: int) -> None:
        size = output_size(plan.augmentation, dataset.height, dataset.width)
        torch.manual_seed(seed)
        network = build_student(student, dataset.classes, in_channels=dataset.channels, image_side=min(size))
        self._network = network.to(memory_format=torch.channels_last)
        self._preprocessing = student_preprocessing(dataset, size)
        self._method = method
        self._learned = {name: nn.Parameter(torch.tensor(value)) for name, value in method.learned.items()}
        self._parameters = [p for p in network.parameters() if p.requires_grad] + list(self._learned.values())
        recipe = Sgd()
        self._optimizer = SGD(
            self._parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )

    def forward(self, images_BHWK: Tensor) -> Tensor:
        """Logits [B, C] of augmented uint8 pictures."""
        z_BC: Tensor = self._network(to_input(images_BHWK, self._preprocessing, channels_last=True))
        return z_BC

    def differentiate(
        self, both: Sequence[View], batch: TrainingBatch, epoch: int, over_cache: Mapping[CacheStatistic, Tensor]
    ) -> _StudentStep:
        """Loss and gradient of one view or two; the graph of the student's pass stays for another teacher's rows."""
        of_batch = {each: x[batch.rows] if each.is_per_sample else x for each, x in over_cache.items()}
        outcome = objective_of(
            self._method,
            both,
            batch.labels,
            epoch=epoch,
            epochs=max(epoch, Training().epochs),
            learned=self._learned,
            cache_statistics=of_batch,
            some_unlabelled=batch.some_unlabelled,
        )
        gradients = torch.autograd.grad(outcome.total, self._parameters, retain_graph=True, materialize_grads=True)
        return _StudentStep(float(outcome.total.detach()), gradients)

    def move(self, step: _StudentStep) -> None:
        """One update of the optimizer."""
        for parameter, gradient in zip(self._parameters, step.gradients, strict=True):
            # The fused update, which is training's and rounds in its own way, takes them to lie as their parameters do.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self._optimizer.step()


@dataclass
class _Differences:
    """Differences of the cached steps from others, one value per step."""

    loss: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)

    def add(self, cached: _StudentStep, live: _StudentStep) -> None:
        # The sums in float64, so that they add nothing to what they measure.
        cached_P, live_P = (torch.cat([g.reshape(-1) for g in step.gradients]).double() for step in (cached, live))
        self.loss.append(_relative(abs(cached.loss - live.loss), abs(live.loss)))
        self.gradient.append(_relative(float((cached_P - live_P).norm()), float(live_P.norm())))
        # cos(u, v) = 1 - |u - v|^2 / 2 of unit vectors: exactly 1 for equal ones.
        apart_P = normalize(cached_P, dim=0) - normalize(live_P, dim=0)
        self.cosine.append(1.0 - float(apart_P.square().sum()) / 2)

    def summary(self) -> ParityComparison:
        return ParityComparison(
            loss=Spread(median(self.loss), max(self.loss)),
            gradient=Spread(median(self.gradient), max(self.gradient)),
            cosine=Spread(median(self.cosine), min(self.cosine)),
        )


def _relative(difference: float, scale: float) -> float:
    return difference / max(scale, torch.finfo(torch.float32).tiny)
