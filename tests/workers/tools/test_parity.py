"""Training on a cache beside its live teacher: they agree, float16 adds rounding alone, a wrong cache is found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.cli import main
from store import CacheIncomplete, CacheReader, CacheSpec, CacheWriter
from tests.support.digits import Digits
from tests.support.onnx_models import linear, save
from workers.augmentation.apply import make_views
from workers.config.cached_augmentation import describe_augmentation
from workers.config.mixing import CutMix, Mixup
from workers.config.operations import RandAugment, RandomErasing, SecondView
from workers.config.schedules import StepSchedule
from workers.config.task import Folders
from workers.config.training import Sgd, Training
from workers.config.views import Augmentation, CropFlip, ResizedCrop
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidMethod, InvalidTeacher
from workers.events import Epoch, ignore, never
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.teacher.build_caches import build_caches
from workers.teacher.recheck import recheck_rows
from workers.teacher.teacher import Teacher
from workers.tools.parity import check_parity
from workers.tools.parity_report import BOUND, ParityComparison, ParityReport, Spread
from workers.training.loop import train_run

DTYPES = ("float16", "float32")
Logits = NDArray[np.floating]


@dataclass(frozen=True)
class Kept:
    """A service's folder with a teacher, its data and a cache of each dtype over the training views."""

    folders: Folders
    digits: Digits
    specs: dict[str, CacheSpec]

    @property
    def data_dir(self) -> Path:
        return self.folders.data_dir

    def check(self, dtype: str, method: object = "kd", **options: object) -> ParityReport:
        key = self.specs[dtype].key
        return check_parity(self.data_dir, key, parse_method(method), **{"student": "cnn_s", **options})

    def live(self, view: int) -> Logits:
        """What the teacher says of a view, float32 [N, C]."""
        return CacheReader(self.folders.caches, self.specs["float32"]).logits(view)


@pytest.fixture(scope="module")
def kept(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    data_dir = tmp_path_factory.mktemp("parity")
    shutil.copytree(digits.folders.data_dir, data_dir, dirs_exist_ok=True)
    folders = Folders(data_dir=data_dir, data_root=data_dir)
    folders.teachers.mkdir(exist_ok=True)
    shutil.copy(digits.teacher_spec.path, folders.teachers / f"{digits.plan.train_cache.teacher_sha256}.onnx")
    specs = {
        dtype: CacheSpec.model_validate({**digits.plan.train_cache.model_dump(), "dtype": dtype}) for dtype in DTYPES
    }
    for spec in specs.values():
        plan = digits.plan.model_copy(update={"train_cache": spec})
        build_caches(plan, folders, ignore, never, threads=1, device="cpu")
    return Kept(folders, digits, specs)


@pytest.fixture
def rewritten(kept: Kept, tmp_path: Path) -> Callable[[str, Callable[[int], Logits]], Kept]:
    """The same folder with one cache, complete and with right checksums, that holds other logits."""

    def rewrite(dtype: str, logits: Callable[[int], Logits]) -> Kept:
        folders = Folders(data_dir=tmp_path, data_root=tmp_path)
        for name in ("datasets", "teachers"):
            (tmp_path / name).symlink_to(kept.data_dir / name)
        spec = kept.specs[dtype]
        writer = CacheWriter(folders.caches, spec)
        for block in writer.pending_blocks():
            view, start, stop = spec.block_range(block)
            writer.write_block(block, logits(view)[start:stop].astype(np.float32))
        writer.finish()
        return replace(kept, folders=folders)

    return rewrite


# ------------------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"ce", "custom"}))
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_holds_for_every_method(dtype: str, method: str, kept: Kept) -> None:
    # Epoch 2 is of the second view.
    report = kept.check(dtype, method, epoch=2, steps=3)
    assert report.ok
    assert report.judged.loss.worst <= BOUND
    assert report.judged.gradient.worst <= BOUND
    assert report.logits.unlike == 0


def test_parity_of_a_float32_cache_is_exact_through_a_whole_epoch(kept: Kept) -> None:
    report = kept.check("float32", {"preset": "atkd"})
    samples = kept.specs["float32"].samples
    assert report.steps == -(-samples // 64)
    assert report.rows == samples
    assert report.rounded is None
    # Far below the bound, for the live statistics are summed as exactly as the cache's: atkd shows it if not.
    assert report.live.gradient.worst < 1e-8
    assert report.live.cosine.worst > 1 - 1e-12
    assert report.logits.difference == 0
    assert report.logits.compared == 10 * samples


def test_parity_of_a_float16_cache_differs_by_rounding_alone(kept: Kept) -> None:
    report = kept.check("float16", "dtkd", epoch=20)
    assert report.rounded is not None
    assert report.rounded.gradient.worst <= 1e-6
    assert 1e-6 < report.live.gradient.median <= report.live.gradient.worst < 1e-2
    assert 0 < report.live.loss.worst < 1e-2
    assert report.live.cosine.worst < 1
    # Half a unit in the last place of the largest logit.
    assert 0 < report.logits.difference <= report.logits.largest * 2**-11
    assert report.logits.unexplained == 0
    assert report.ok


MIXED = {
    "mixup": CropFlip(pad=1, flip=False, mixup=Mixup(alpha=1.0)),
    "cutmix": CropFlip(pad=1, cutmix=CutMix()),
    "both, of boxes and strong second views": ResizedCrop(
        size=(8, 8),
        scale=(0.5, 1.0),
        mixup=Mixup(probability=0.4),
        cutmix=CutMix(probability=0.4),
        second_view=SecondView(rand_augment=RandAugment(magnitude=10), random_erasing=RandomErasing()),
    ),
}


@pytest.mark.parametrize("recipe", MIXED.values(), ids=MIXED)
def test_parity_of_mixed_views_is_exact(recipe: Augmentation, kept: Kept) -> None:
    """Cached logits are those of the live teacher for the student's own mixed pictures, whatever is held out."""
    changes = {"augmentation": describe_augmentation(recipe, Holdout(holdout=0.2)), "dtype": "float32"}
    spec = CacheSpec.model_validate({**kept.specs["float32"].model_dump(), **changes})
    build_caches(kept.digits.plan.model_copy(update={"train_cache": spec}), kept.folders, ignore, never, threads=1)
    mixed = replace(kept, specs={"float32": spec})
    for method in ("kd", "mlld"):
        report = mixed.check("float32", method, epoch=2, steps=6)
        assert report.ok
        assert report.logits.difference == 0
        assert report.live.gradient.worst < 1e-8
    with pytest.raises(InvalidMethod, match=r"'dkd' needs the one true class .* mixed"):
        mixed.check("float32", "dkd")
    assert recheck_rows(kept.data_dir, spec.key, 200).ok
    # Of other pictures than the views that are not mixed.
    assert np.abs(mixed.live(0) - kept.live(0)).max() > 1


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("method", ["kd", "ctkd", "mlld"])
def test_parity_trains_the_student_as_a_run_does(method: str, kept: Kept, tmp_path: Path) -> None:
    training = Training(epochs=2, optimizer=Sgd(), schedule=StepSchedule(milestones=()), batch_size=50)
    epochs: list[Epoch] = []
    order = kept.digits.order(method, tmp_path, training)
    train_run(order, lambda event: epochs.append(event) if isinstance(event, Epoch) else None, never)
    report = kept.check("float16", method, batch_size=50)
    assert report.loss == pytest.approx(epochs[0].metrics["train_loss"], rel=1e-6)


# ---------------------------------------------------------------------------------------------------- disagreement


@pytest.mark.parametrize(
    ("loss", "gradient", "agrees"), [(1e-6, 1e-6, True), (1.1e-6, 0.0, False), (0.0, 1.1e-6, False)]
)
def test_parity_is_decided_by_the_worst_step_of_loss_and_of_gradient(
    loss: float, gradient: float, agrees: bool
) -> None:
    assert ParityComparison(Spread(0.0, loss), Spread(0.0, gradient), Spread(1.0, 1.0)).agrees is agrees


def test_parity_finds_rows_in_another_order(kept: Kept, rewritten: Callable[..., Kept]) -> None:
    wrong = rewritten("float32", lambda view: np.roll(kept.live(view), 1, axis=0))
    report = wrong.check("float32", steps=3)
    assert not report.ok
    assert report.live.gradient.worst > 0.01
    assert "are not this teacher's for these pictures" in report.verdict


def test_parity_finds_logits_of_another_view(kept: Kept, rewritten: Callable[..., Kept]) -> None:
    wrong = rewritten("float16", lambda view: kept.live(1 - view))
    report = wrong.check("float16", steps=3)
    assert not report.ok
    assert "are not this teacher's for these pictures" in report.verdict


def test_parity_finds_logits_of_another_teacher(
    kept: Kept, rewritten: Callable[..., Kept], tmp_path_factory: pytest.TempPathFactory
) -> None:
    weight_PN = np.random.default_rng(0).normal(size=(64, 10)) / 8
    path = save(linear(weight_PN, picture=(1, 8, 8)), tmp_path_factory.mktemp("other") / "linear.onnx")
    other = Teacher(path, kept.digits.preprocessing, threads=1, device="cpu")
    pictures, recipe = torch.from_numpy(kept.digits.train.images_NHWC), kept.digits.views

    def logits(view: int) -> Logits:
        return other.logits(make_views(pictures, recipe.augmentation, recipe.seed, view, np.arange(len(pictures))))

    report = rewritten("float16", logits).check("float16", steps=3)
    assert not report.ok
    assert report.logits.unlike > 0.9 * report.logits.compared


def test_parity_finds_one_wrong_row_in_the_step_that_reads_it(kept: Kept, rewritten: Callable[..., Kept]) -> None:
    def one_off(view: int) -> Logits:
        logits = kept.live(view)
        logits[700, 3] += 0.01
        return logits

    report = rewritten("float32", one_off).check("float32")
    assert not report.ok
    assert report.logits.unlike == 1
    assert report.live.gradient.median <= 1e-6 < report.live.gradient.worst


def test_parity_finds_statistics_of_rounded_logits_by_a_method_that_reads_them(
    kept: Kept, rewritten: Callable[..., Kept]
) -> None:
    """Float16 logits are the same bits then; the statistics should be those of the unrounded ones."""
    wrong = rewritten("float16", lambda view: kept.live(view).astype(np.float16))
    assert wrong.check("float16", "kd", steps=3).ok
    report = wrong.check("float16", "dtkd", epoch=20, steps=3)
    assert not report.ok
    assert report.logits.unlike == 0
    assert report.verdict.endswith("the logits are this teacher's, the statistics are not")


def test_parity_distinguishes_last_bits_from_another_teacher(kept: Kept, rewritten: Callable[..., Kept]) -> None:
    def noisy(view: int) -> Logits:
        logits = kept.live(view)
        noise = np.random.default_rng(view).normal(size=logits.shape)
        return logits + 2e-6 * np.abs(logits).max() * np.clip(noise, -3, 3)

    report = rewritten("float32", noisy).check("float32", steps=3)
    assert not report.ok
    assert "differ in their last bits alone" in report.verdict
    assert "CPUExecutionProvider" in report.verdict


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "epoch"), [("ce", 1), ("annealing_kd", 500), ({"preset": "kd", "ce_weight": 1, "kd_weight": 0}, 1)]
)
def test_parity_refuses_a_method_that_reads_no_teacher(method: object, epoch: int, kept: Kept) -> None:
    with pytest.raises(InvalidMethod, match="learns from labels alone"):
        kept.check("float16", method, epoch=epoch)


def test_parity_refuses_two_views_of_a_cache_that_has_one(kept: Kept) -> None:
    key = kept.digits.plan.test_cache.key
    with pytest.raises(InvalidMethod, match="compares two views"):
        check_parity(kept.data_dir, key, parse_method("mlld"), student="cnn_s")


def test_parity_refuses_a_teacher_that_is_gone_or_another(kept: Kept, tmp_path: Path) -> None:
    for name in ("caches", "datasets"):
        (tmp_path / name).symlink_to(kept.data_dir / name)
    other = replace(kept, folders=Folders(data_dir=tmp_path, data_root=tmp_path))
    with pytest.raises(InvalidTeacher, match="does not exist"):
        other.check("float16")
    name = f"{kept.specs['float16'].teacher_sha256}.onnx"
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers" / name).write_bytes((kept.folders.teachers / name).read_bytes() + b"\0")
    with pytest.raises(InvalidTeacher, match="was changed"):
        other.check("float16")


def test_parity_refuses_an_incomplete_cache(kept: Kept, tmp_path: Path) -> None:
    CacheWriter(tmp_path / "caches", kept.specs["float16"])
    with pytest.raises(CacheIncomplete):
        check_parity(tmp_path, kept.specs["float16"].key[:8], parse_method("kd"))


# ---------------------------------------------------------------------------------------------- the command line


def retort_parity(kept: Kept, *words: str, as_json: bool = False) -> int:
    key = kept.specs["float16"].key[:10]
    where = ("--data-dir", str(kept.data_dir), "--student", "cnn_s", "--steps", "3", "--threads", "1")
    return main([*(["--json"] if as_json else []), "parity", key, *where, *words])


def test_parity_command_shows_both_comparisons_and_the_verdict(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert retort_parity(kept, "--method", '{"preset": "kd", "temperature": 2}', "--batch-size", "32") == 0
    out, err = capsys.readouterr()
    assert "kd(temperature=2), cnn_s, epoch 1: 96 rows in 3 steps" in out
    assert "live teacher, rounded to float16" in out
    assert "0 of 960 are not the teacher's in float16" in out
    assert "this cache trains a student as the live teacher rounded to float16 does" in out
    assert err == ""


def test_parity_command_has_the_report_as_json(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert retort_parity(kept, "--epoch", "2", as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["object"] == "parity_report"
    assert document["key"] == kept.specs["float16"].key
    assert document["ok"] is True
    assert document["rounded"]["gradient"]["worst"] <= BOUND < document["live"]["gradient"]["worst"]
    assert (document["epoch"], document["steps"], document["rows"]) == (2, 3, 192)


def test_parity_command_fails_in_one_line_when_they_differ(
    kept: Kept, rewritten: Callable[..., Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = rewritten("float16", lambda view: kept.live(1 - view))
    assert retort_parity(wrong) == 1
    out, err = capsys.readouterr()
    assert "live teacher, rounded to float16" in out
    assert err.startswith("retort: this cache does not train a student as the live teacher")
    assert err.count("\n") == 1
    assert retort_parity(wrong, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--method", "ce"], 1, "learns from labels alone"),
        (["--method", "kdd"], 1, "Did you mean 'kd'?"),
        (["--method", "{"], 1, "--method is not JSON"),
        (["--student", "resnet9"], 1, "Did you mean 'resnet8'?"),
        (["--steps", "0"], 2, "--steps"),
        (["--data-dir", "nowhere"], 2, "nowhere"),
    ],
)
def test_parity_command_refuses_what_cannot_be_compared_in_one_line(
    words: list[str], status: int, says: str, kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retort_parity(kept, *words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
