"""Views smaller than the teacher's input: the same boxes, resampled for each network, and what is told of the teacher.

The dataset is of stripes, one pixel wide, upright or level: where 32 x 32 pixels become 8 x 8 they are grey, and
nothing but noise is left. The teacher compares neighbours: it is always right on the former, and guesses on the latter.

Legend: N samples, B samples of a batch.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image

from store import CacheReader, CacheSpec, CacheWriter
from tests.support import onnx_models
from tests.support.digits import SMALL, Digits
from workers.augmentation.apply import make_views
from workers.augmentation.draw import draw
from workers.config.dataset import thumbnail_warnings
from workers.config.job import JobSpec, StudentSpec
from workers.config.operations import ColorJitter, RandAugment, RandomErasing
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop, Views, teacher_augmentation
from workers.data.kinds.folder import FolderDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation import prepared
from workers.data.preparation.prepare import prepare, prepare_splits
from workers.data.preparation.prepared import Dataset
from workers.events import Log, PreflightChecked, ignore, never
from workers.methods.catalog import parse_method
from workers.pipeline import run_job
from workers.spec import Spec
from workers.teacher.accuracy import measure_teacher
from workers.teacher.build_caches import build_caches
from workers.teacher.cache_plan import CachePlan
from workers.teacher.inference import infer_blocks
from workers.teacher.plan_caches import plan_caches
from workers.teacher.preflight.check import check
from workers.teacher.preflight.views import check_views
from workers.teacher.recheck import recheck_rows
from workers.teacher.teacher import Teacher
from workers.tools.parity import check_parity
from workers.training.training_feed import TrainingFeed

SIDE, SMALL_SIDE, SAMPLES = 32, 8, 400
WHOLE = ResizedCrop(size=(SMALL_SIDE, SMALL_SIDE), scale=(1.0, 1.0), ratio=(1.0, 1.0))
PLAIN = Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


def stripes(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 32, 32, 3] and labels [N]: 0 of upright stripes, 1 of level ones."""
    rng = np.random.default_rng(seed)
    labels_N = rng.permutation(np.arange(samples) % 2)
    images = rng.integers(110, 140, (samples, SIDE, SIDE, 3))
    on = np.arange(SIDE) % 2 * 80
    images += np.where(labels_N[:, None, None, None] == 0, on[None, None, :, None], on[None, :, None, None])
    return images.astype(np.uint8), labels_N.astype(np.int64)


def sees_stripes() -> onnx.ModelProto:
    """Logits: 20 times the mean difference between neighbours in a row, and in a column."""
    kernel = np.zeros((2, 3, 2, 2), dtype=np.float32)
    kernel[0, :, 0, 0], kernel[0, :, 0, 1] = 20 / 3, -20 / 3
    kernel[1, :, 0, 0], kernel[1, :, 1, 0] = 20 / 3, -20 / 3
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["size"]),
        helper.make_node("GlobalAveragePool", ["size"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"], axis=1),
    ]
    image = onnx_models.image(("batch", 3, "height", "width"))
    return onnx_models.model(nodes, [image], [onnx_models.logits(("batch", 2))], {"kernel": kernel})


class Setting:
    """A job on the stripes whose views are small, and its caches."""

    def __init__(self, root: Path, preprocessing: Preprocessing = PLAIN) -> None:
        arrays = {}
        for split, samples, seed in (("train", SAMPLES, 0), ("test", 100, 1)):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = stripes(samples, seed)
        np.savez(root / "stripes.npz", **arrays)
        self.folders = Folders(data_dir=root / "data", data_root=root)
        path = onnx_models.save(sees_stripes(), root / "teacher.onnx")
        self.job = JobSpec(
            teacher=TeacherSpec(path=path, preprocessing=preprocessing),
            dataset=NpzDataset(path="stripes.npz"),
            views=Views(augmentation=WHOLE, count=2),
            students=(StudentSpec(name="cnn_s"),),
            methods=(parse_method("kd"),),
            training=SMALL.model_copy(update={"epochs": 1}),
        )
        self.plan = self.filled(self.job)
        data = prepare_splits(self.job.dataset, ("train", "test"), self.folders.data_root, self.folders.datasets)
        self.train, self.test = data["train"], data["test"]
        self.teacher = Teacher(path, preprocessing, threads=1, device="cpu")

    def filled(self, job: JobSpec) -> CachePlan:
        plan = plan_caches(job, self.folders, ignore, never, threads=1, device="cpu")
        build_caches(plan, self.folders, ignore, never, threads=1, device="cpu")
        return plan

    def job_with(self, recipe: Augmentation, preprocessing: Preprocessing = PLAIN) -> JobSpec:
        teacher = self.job.teacher.model_copy(update={"preprocessing": preprocessing})
        count = 1 if isinstance(recipe, NoAugmentation) else 2
        return self.job.model_copy(update={"views": Views(augmentation=recipe, count=count), "teacher": teacher})


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("stripes"))


# ------------------------------------------------------------------------------------------------------- which pictures


def test_the_logits_of_a_small_view_are_of_the_full_resampling_of_its_box(setting: Setting) -> None:
    kept = np.stack([CacheReader(setting.folders.caches, setting.plan.train_cache).logits(view) for view in range(2)])
    index_N, plain = np.arange(SAMPLES), torch.from_numpy(setting.train.take(slice(None)))
    full = WHOLE.model_copy(update={"size": (SIDE, SIDE)})
    for view in range(2):
        expected = setting.teacher.logits(make_views(plain, full, 0, view, index_N))
        np.testing.assert_array_equal(kept[view], expected.astype(np.float16))
        thumbnails = setting.teacher.logits(make_views(plain, WHOLE, 0, view, index_N))
        assert (thumbnails.argmax(axis=1) == setting.train.labels_N).mean() < 0.7
    accuracy = measure_teacher(setting.plan, setting.folders).accuracy
    assert (accuracy.test, accuracy.views) == (1.0, 1.0)


CROPPED = PLAIN.model_copy(update={"size": (48, 48), "resize": 54, "interpolation": "bicubic"})


def test_the_accuracy_of_a_teacher_that_crops_is_that_of_the_logits_that_are_trained_on(setting: Setting) -> None:
    """Where the students' views are a sixth of its input, and were what it was given, enlarged."""
    plan = setting.filled(setting.job_with(WHOLE, CROPPED))
    teacher = Teacher(setting.job.teacher.path, CROPPED, threads=1, device="cpu")
    accuracy = measure_teacher(plan, setting.folders).accuracy
    assert (accuracy.test, accuracy.views) == (1.0, 1.0)
    kept = CacheReader(setting.folders.caches, plan.train_cache).logits(1)
    images_NHWC, drawn = setting.train.take(slice(None)), draw(WHOLE, 0, 1, np.arange(SAMPLES), SIDE, SIDE)
    boxes = [
        Image.fromarray(np.ascontiguousarray(image[:, ::-1] if flip else image)).resize(
            (48, 48), Image.Resampling.BICUBIC
        )
        for image, flip in zip(images_NHWC, drawn.flip, strict=True)
    ]
    as_they_are = Teacher(setting.job.teacher.path, PLAIN.model_copy(update={"size": None}), threads=1, device="cpu")
    np.testing.assert_array_equal(kept, as_they_are.logits(np.stack(boxes)).astype(np.float16))
    enlarged = teacher.logits(make_views(torch.from_numpy(images_NHWC), WHOLE, 0, 1, np.arange(SAMPLES)))
    assert (enlarged.argmax(axis=1) == setting.train.labels_N).mean() < 0.7
    cropped = [
        Image.fromarray(each).resize((54, 54), Image.Resampling.BICUBIC).crop((3, 3, 51, 51))
        for each in setting.test.take(slice(None))
    ]
    on_test = CacheReader(setting.folders.caches, plan.test_cache).logits(0)
    np.testing.assert_array_equal(on_test, as_they_are.logits(np.stack(cropped)).astype(np.float16))


def test_recheck_and_parity_make_the_views_of_a_teacher_that_crops(setting: Setting) -> None:
    plan = setting.filled(setting.job_with(ResizedCrop(size=(8, 8), scale=(0.5, 1.0)), CROPPED))
    folders, key = setting.folders, plan.train_cache.key
    folders.teachers.mkdir(exist_ok=True)
    shutil.copy(setting.job.teacher.path, folders.teachers / f"{plan.train_cache.teacher_sha256}.onnx")
    assert recheck_rows(folders.data_dir, key, rows=40).ok
    assert check_parity(folders.data_dir, key, parse_method("kd"), student="cnn_s", steps=2).ok


def test_without_a_size_the_teacher_gets_boxes_as_large_as_the_pictures_it_was_measured_on(
    setting: Setting,
) -> None:
    job = setting.job_with(WHOLE, PLAIN.model_copy(update={"size": None}))
    plan = setting.filled(job)
    assert plan.train_cache.augmentation["size"] is None
    assert measure_teacher(plan, setting.folders).accuracy.views == 1.0


def test_both_networks_see_the_same_boxes() -> None:
    """Of a ramp to the right in red and one down in green, a view says where it was cut out and whether mirrored."""
    ramp = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64)[None, None, :] * 4, np.arange(64)[None, :, None] * 4
    index_N = np.arange(200)
    plain = torch.from_numpy(np.repeat(ramp, 200, axis=0))
    recipe = ResizedCrop(size=(8, 8), scale=(0.1, 1.0))
    seen = teacher_augmentation(recipe, (48, 48), 64, 64)
    small = make_views(plain, recipe, 5, 1, index_N).float()
    large = make_views(plain, seen, 5, 1, index_N).float()
    shrunk = large.view(200, 8, 6, 8, 6, 3).mean(dim=(2, 4))
    # Half a pixel at the border of an enlarged box repeats its outermost pixel; elsewhere only rounding differs.
    assert (small - shrunk).abs().max() <= 2.0
    assert (small - shrunk)[:, 1:-1, 1:-1].abs().max() <= 1.0
    assert len(torch.unique(small[:, 0, 0], dim=0)) > 100


@pytest.mark.parametrize(
    "operations",
    [{}, {"rand_augment": RandAugment(), "color_jitter": ColorJitter(), "random_erasing": RandomErasing()}],
    ids=["plain", "operations"],
)
def test_a_batch_holds_the_students_views_and_the_live_teachers_logits_of_their_boxes(
    operations: dict[str, Spec], setting: Setting
) -> None:
    recipe = ResizedCrop(size=(SMALL_SIDE, SMALL_SIDE), scale=(0.5, 1.0), **operations)
    plan = setting.filled(setting.job_with(recipe))
    seen = teacher_augmentation(recipe, PLAIN.size, SIDE, SIDE)
    of_job = Views(augmentation=recipe, count=2)
    reader = CacheReader(setting.folders.caches, plan.train_cache)
    feed = TrainingFeed(setting.train, of_job, reader, 64, 0, torch.device("cpu"), views_per_step=2)
    for epoch in range(2):
        for batch in feed.epoch(epoch):
            for view, both in zip((epoch, 1 - epoch), batch.views, strict=True):
                rows_B = batch.rows.numpy()
                plain = torch.from_numpy(setting.train.take(rows_B))
                assert torch.equal(both.images, make_views(plain, recipe, 0, view, rows_B))
                live = setting.teacher.logits(make_views(plain, seen, 0, view, rows_B))
                assert both.teacher_logits is not None
                np.testing.assert_array_equal(both.teacher_logits.numpy(), live.astype(np.float16))


def test_the_cache_agrees_with_the_live_teacher_by_its_key_alone(setting: Setting, tmp_path: Path) -> None:
    for name in ("caches", "datasets"):
        (tmp_path / name).symlink_to(setting.folders.data_dir / name)
    (tmp_path / "teachers").mkdir()
    spec = setting.plan.train_cache
    shutil.copy(setting.job.teacher.path, tmp_path / "teachers" / f"{spec.teacher_sha256}.onnx")
    assert check_parity(tmp_path, spec.key, parse_method("kd"), student="cnn_s", steps=2).ok
    assert recheck_rows(tmp_path, spec.key, 50).ok


def test_files_give_the_teachers_views_that_their_decoded_copy_gives(setting: Setting, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, name, number in ((s, c, n) for s in ("train", "test") for c in ("a", "b") for n in range(6)):
        folder = tmp_path / "noise" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    recipe = teacher_augmentation(ResizedCrop(size=(8, 8)), (SIDE, SIDE), 20, 24)
    kept = []
    for storage in ("decoded", "files"):
        spec = FolderDataset(path="noise", storage=storage)
        dataset = prepare(spec, "train", tmp_path, tmp_path / storage)
        of_views = {"augmentation": recipe.model_dump(mode="json"), "samples": 12}
        fields = {**of_views, "dataset_fingerprint": dataset.fingerprint}
        writer = CacheWriter(tmp_path / storage, CacheSpec(**{**setting.plan.train_cache.model_dump(), **fields}))
        infer_blocks(setting.teacher, dataset, writer, writer.pending_blocks())
        writer.finish()
        kept.append((type(dataset), writer.spec.key, CacheReader(writer.root, writer.spec).logits(1)))
    (kind, key, logits), (other_kind, other_key, other_logits) = kept
    assert kind is not other_kind
    assert key == other_key
    np.testing.assert_array_equal(logits, other_logits)
    assert len(np.unique(logits[:, 0])) > 6


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        (NoAugmentation(), (64, 64)),
        (CropFlip(), (32, 32)),
        (CropFlip(), (64, 64)),
        (CropFlip(), None),
        (ResizedCrop(), None),
        (ResizedCrop(), (32, 32)),
        (ResizedCrop(size=(32, 32)), None),
        (ResizedCrop(size=(64, 64)), (64, 64)),
    ],
)
def test_where_the_teachers_pictures_are_what_they_were_so_is_the_key(
    recipe: Augmentation, size: tuple[int, int] | None
) -> None:
    assert teacher_augmentation(recipe, size, 32, 32) is recipe


@pytest.mark.parametrize(
    ("recipe", "size", "expected"),
    [
        (ResizedCrop(size=(8, 8)), (64, 64), (64, 64)),
        (ResizedCrop(size=(64, 64)), (16, 16), (16, 16)),
        (ResizedCrop(size=(8, 8)), None, None),
        (ResizedCrop(), (64, 64), (64, 64)),
        (ResizedCrop(size=(32, 8)), (8, 32), (8, 32)),
    ],
)
def test_where_they_are_others_the_key_is_another(
    recipe: ResizedCrop, size: tuple[int, int] | None, expected: tuple[int, int] | None
) -> None:
    assert teacher_augmentation(recipe, size, 32, 32) == recipe.model_copy(update={"size": expected})


def test_a_cache_of_thumbnails_is_not_taken_and_students_of_other_sizes_share_one(setting: Setting) -> None:
    spec = setting.plan.train_cache
    of_thumbnails = CacheSpec.model_validate(spec.model_dump() | {"augmentation": WHOLE.model_dump(mode="json")})
    assert spec.key != of_thumbnails.key
    larger = setting.job_with(WHOLE.model_copy(update={"size": (16, 16)}))
    plan = plan_caches(larger, setting.folders, ignore, never, threads=1, device="cpu")
    assert plan.train_cache.key == spec.key
    assert plan.contract_forwards == 0


def test_a_job_whose_views_are_not_resampled_keeps_its_key(digits: Digits) -> None:
    assert digits.plan.train_cache.augmentation == digits.views.augmentation.model_dump(mode="json")


# ----------------------------------------------------------------------------------------------------- what is reported


def test_a_run_reports_the_teacher_on_the_training_views(setting: Setting, tmp_path: Path) -> None:
    outcome = run_job(setting.job, setting.folders, tmp_path)
    assert outcome.teacher_forwards == 0
    assert (outcome.teacher_accuracy, outcome.teacher_views_accuracy) == ({"test": 1.0}, 1.0)
    result = json.loads((tmp_path / "run-0/artifacts/result.json").read_text())
    assert result["teacher"] == {"top1": 1.0, "views_top1": 1.0}


def test_the_accuracy_on_views_counts_every_view_of_the_cache(setting: Setting, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    (tmp_path / "datasets").symlink_to(setting.folders.datasets)
    labels_N = np.asarray(setting.train.labels_N)
    said = np.stack([labels_N, 1 - labels_N])
    said[1, :100] = labels_N[:100]
    for spec in (setting.plan.train_cache, setting.plan.test_cache):
        writer = CacheWriter(folders.caches, spec)
        for block in writer.pending_blocks():
            view, start, stop = spec.block_range(block)
            writer.write_block(block, np.eye(2, dtype=np.float32)[said[view, start:stop]])
        writer.finish()
    assert measure_teacher(setting.plan, folders).accuracy.views == (SAMPLES + 100) / (2 * SAMPLES)


# ------------------------------------------------------------------------------------------------- the check before it


def sided() -> Dataset:
    """Pictures whose left half (class 0) or right half is bright, which mirroring turns into the other class."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(300) % 2
    images = rng.integers(0, 60, (300, SIDE, SIDE, 3))
    images[labels_N == 0, :, : SIDE // 2] += 150
    images[labels_N == 1, :, SIDE // 2 :] += 150
    return prepared.DecodedDataset(
        images_NHWC=images.astype(np.uint8),
        labels_N=labels_N.astype(np.int64),
        class_names=("left", "right"),
        fingerprint="0" * 64,
        split="train",
        path=Path(),
        channel_mean=(0.5,) * 3,
        channel_std=(0.25,) * 3,
    )


def sees_sides(folder: Path) -> Teacher:
    weight = np.zeros((3, SIDE, SIDE, 2))
    weight[:, :, : SIDE // 2, 0] = weight[:, :, SIDE // 2 :, 1] = 10 / (3 * SIDE * SIDE)
    built = onnx_models.linear(weight.reshape(-1, 2), picture=(3, SIDE, SIDE))
    return Teacher(onnx_models.save(built, folder / "sides.onnx"), PLAIN, threads=1, device="cpu")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (CropFlip(pad=2), ("moved by up to 2 pixels", "mirrored", "a smaller `pad`")),
        (
            CropFlip(pad=2, random_erasing=RandomErasing()),
            ("by up to 2 pixels", "changed by random_erasing", "a smaller `pad`, or less of random_erasing"),
        ),
        (
            ResizedCrop(size=(32, 32), scale=(0.9, 1.0)),
            ("90% to 100% of the 32 x 32", "made 32 x 32", "`scale`"),
        ),
    ],
)
def test_a_teacher_that_is_much_worse_on_views_is_told_with_both_numbers_and_why(
    recipe: Augmentation, says: tuple[str, ...], tmp_path: Path
) -> None:
    teacher, dataset = sees_sides(tmp_path), sided()
    plain = teacher.run_preflight(dataset)
    report = check_views(teacher, dataset, Views(augmentation=recipe, count=2), plain)
    assert report.rows == plain.rows == 300
    assert 0.35 < report.accuracy < 0.65
    [warning] = report.warnings
    assert f"right on {report.accuracy:.1%} of 300 training views, and on 100.0% of the same pictures" in warning
    assert all(part in warning for part in says), warning


def test_augmentation_that_costs_little_is_no_matter(tmp_path: Path) -> None:
    teacher, dataset = sees_sides(tmp_path), sided()
    plain = teacher.run_preflight(dataset)
    report = check_views(teacher, dataset, Views(augmentation=CropFlip(pad=4, flip=False), count=2), plain)
    assert (report.accuracy, report.warnings) == (1.0, ())


def test_the_views_are_of_the_very_pictures_that_were_tried_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rare class more are taken, so the slice is larger than what was asked for."""
    is_rare_N = np.zeros(300, dtype=np.int64)
    is_rare_N[150:162] = 1
    teacher, dataset = sees_sides(tmp_path), dataclasses.replace(sided(), labels_N=is_rare_N)
    take, taken = prepared.DecodedDataset.take, set[int]()

    def noting(self: prepared.DecodedDataset, rows: np.ndarray) -> np.ndarray:
        taken.update(rows.tolist())
        return take(self, rows)

    monkeypatch.setattr(prepared.DecodedDataset, "take", noting)
    plain = check(teacher, dataset, 50)
    tried = {*taken}
    taken.clear()
    check_views(teacher, dataset, Views(augmentation=CropFlip(pad=2)), plain, 50)
    assert len(tried) == plain.rows > 50
    assert taken == tried


@pytest.mark.parametrize(("plain_accuracy", "warns"), [(1.0, True), (0.6, False)])
def test_a_loss_is_told_only_beyond_a_quarter_of_the_hits_and_beyond_chance(
    plain_accuracy: float, warns: bool, tmp_path: Path
) -> None:
    """Half of the views are right: far less than three quarters of all, not of six in ten."""
    teacher, dataset = sees_sides(tmp_path), sided()
    plain = teacher.run_preflight(dataset).model_copy(update={"accuracy": plain_accuracy})
    report = check_views(teacher, dataset, Views(augmentation=CropFlip(pad=0)), plain)
    assert bool(report.warnings) is warns


def test_the_check_on_views_is_remembered_for_these_views_and_its_warning_is_repeated(
    digits: Digits, tmp_path: Path
) -> None:
    """A fifth of a digit may be any. The check on plain pictures is not run again for other views."""
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    job = digits.job("kd")
    crops = job.model_copy(update={"views": Views(augmentation=ResizedCrop(scale=(0.08, 0.2)), count=2)})
    told = []
    whole = job.model_copy(update={"views": Views(augmentation=CropFlip(pad=0, flip=False))})
    for each in (whole, crops, crops):
        events: list[object] = []
        plan = plan_caches(each, folders, events.append, never, threads=1, device="cpu")
        warned = [e for e in events if isinstance(e, Log) and "training views" in e.message]
        checked = [e.views_accuracy for e in events if isinstance(e, PreflightChecked)]
        told.append((plan.contract_forwards, len(warned), checked))
    (first, *_, [on_whole]), (second, *_, [on_crops]), (third, *_, nothing) = told
    assert [warned for _, warned, _ in told] == [0, 1, 1]
    assert on_whole > 0.9 > 0.6 > on_crops
    assert (second, third, nothing) == (512, 0, [])
    assert first > 1024


# ----------------------------------------------------------------------------------- pictures that are stored small


@pytest.mark.parametrize(
    ("stored", "size", "warns"),
    [((8, 8), (32, 32), True), ((32, 8), (32, 32), True), ((32, 40), (32, 32), False), (None, (32, 32), False)],
)
def test_a_data_set_that_is_stored_smaller_than_the_teachers_input_is_told_of(
    stored: tuple[int, int] | None, size: tuple[int, int], warns: bool
) -> None:
    warnings = thumbnail_warnings(FolderDataset(path="x", image_size=stored), size)
    assert len(warnings) == warns
    assert all("set image_size to [32, 32]" in warning for warning in warnings)
    assert thumbnail_warnings(NpzDataset(path="x"), size) == ()
    assert thumbnail_warnings(FolderDataset(path="x", image_size=stored), None) == ()
