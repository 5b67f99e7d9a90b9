"""The whole path without HTTP and Ray: what is reused, what is counted, what is refused."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from store import CacheCorrupt, CacheReader, Catalog
from tests.support.digits import SMALL, Digits
from tests.support.full_disk import on_a_small_disk, run_outputs
from tests.support.store_cases import is_held
from workers import pipeline
from workers.config.job import JobSpec, RunSpec, StudentSpec
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.npz import NpzDataset
from workers.errors import ContractViolation, InvalidJob, InvalidTeacher, Stopped
from workers.events import CacheReady, InferenceProgress, Log, PreflightChecked, Stage, ignore, never
from workers.files import file_sha256
from workers.methods.catalog import parse_method
from workers.pipeline import run_job
from workers.teacher.build_caches import build_caches
from workers.teacher.forwards import ForwardCounter, carry_over, count_forwards, forwards_avoided, forwards_needed
from workers.teacher.plan_caches import plan_caches
from workers.teacher.plan_checks import identify
from workers.teacher.recheck import recheck_rows
from workers.training.share_out import share_out

ONE_EPOCH = SMALL.model_copy(update={"epochs": 1})


@pytest.mark.usefixtures("without_onnx")
def test_a_second_job_runs_no_teacher(digits: Digits, tmp_path: Path) -> None:
    # A folder of its own, so that the first job has everything to do.
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    job = digits.job("ce", "kd", training=ONE_EPOCH)
    events: list[object] = []
    job = job.model_copy(update={"training": ONE_EPOCH.model_copy(update={"device": "cpu"})})
    first = run_job(job, folders, tmp_path / "first", events.append)
    samples = {"train": len(digits.train.labels_N), "test": len(digits.test.labels_N)}
    checked = next(e for e in events if isinstance(e, PreflightChecked))
    assert first.teacher_forwards == 2 * samples["train"] + samples["test"] + checked.forwards
    # The device is that of the job for the teacher, too.
    assert checked.provider_reason == "asked for"
    assert any(isinstance(e, Log) and e.message == "inference on CPUExecutionProvider: asked for" for e in events)

    events.clear()
    job = digits.job("rld", training=ONE_EPOCH, student="cnn_m")
    second = run_job(job, folders, tmp_path / "second", events.append)
    assert second.teacher_forwards == 0
    assert second.teacher_forwards_avoided == samples["train"] + samples["test"]
    assert [e.rows_inferred for e in events if isinstance(e, CacheReady)] == [0, 0]
    assert not [e for e in events if isinstance(e, PreflightChecked)]
    assert second.teacher_accuracy == first.teacher_accuracy
    assert first.teacher_accuracy["test"] > 0.9


@pytest.mark.usefixtures("without_onnx")
def test_the_caches_of_a_job_are_kept_from_eviction_until_it_ends(digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    shutil.copytree(digits.folders.data_dir, folders.data_dir)
    catalog = Catalog(folders.caches)
    held: dict[str, list[bool]] = {}

    def look(event: object) -> None:
        if isinstance(event, Stage):
            held[event.stage] = [
                is_held(catalog, spec.key) for spec in (digits.plan.test_cache, digits.plan.train_cache)
            ]

    run_job(digits.job("ce", training=ONE_EPOCH), folders, tmp_path / "out", look)
    look(Stage(stage="preparing"))
    assert held == {"preparing": [False, False], "inference": [True, True], "training": [True, True]}


def test_passes_avoided_are_those_a_live_teacher_would_have_run(digits: Digits) -> None:
    job = digits.job("ce", "kd", "dtkd", training=SMALL.model_copy(update={"epochs": 10}))
    train, test = digits.plan.train_cache.samples, digits.plan.test_cache.samples
    # Cross-entropy needs no teacher; the two others would have run it in each of ten epochs.
    needed = forwards_needed(job, digits.plan)
    assert needed == 2 * (10 * train + test)
    assert forwards_avoided(needed, 100) == needed - 100
    # A cache that cost more has spared nothing.
    assert forwards_avoided(needed, needed + 1) == 0


def test_another_augmentation_is_another_cache(digits: Digits) -> None:
    job = digits.job("kd")
    other = job.model_copy(update={"views": job.views.model_copy(update={"seed": 1})})
    plan = plan_caches(other, digits.folders, ignore, never, threads=1)
    assert plan.train_cache.key != digits.plan.train_cache.key
    assert plan.test_cache.key == digits.plan.test_cache.key


def test_a_job_warns_of_methods_that_need_more_epochs(digits: Digits) -> None:
    events: list[object] = []
    plan_caches(digits.job("kd", "rld", training=ONE_EPOCH), digits.folders, events.append, never, threads=1)
    warnings = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    [warning] = [message for message in warnings if message.startswith("method ")]
    assert warning.startswith("method 'rld': its distillation terms warm up over 20 epochs, and training.epochs is 1")


def with_softmax(digits: Digits, operator: str, folder: Path) -> TeacherSpec:
    """The digits' teacher with a softmax behind its logits."""
    model = onnx.load(digits.teacher_spec.path)
    [output] = model.graph.output
    model.graph.node.append(helper.make_node(operator, [output.name], ["normalised"], axis=1))
    output.name = "normalised"
    path = folder / "teacher.onnx"
    onnx.save(model, path)
    return TeacherSpec(path=path, preprocessing=digits.preprocessing)


def with_more_classes(digits: Digits, folder: Path) -> TeacherSpec:
    """The digits' teacher with its classes in reverse and two more before them, and their names in the file."""
    model = onnx.load(digits.teacher_spec.path)
    [output] = model.graph.output
    order = numpy_helper.from_array(np.array([0, 0, *range(9, -1, -1)]), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(helper.make_node("Gather", [output.name, "order"], ["reversed"], axis=1))
    output.name = "reversed"
    output.type.tensor_type.shape.dim[1].dim_value = 12
    helper.set_model_props(model, {"names": str(dict(enumerate(["x", "y", *"9876543210"])))})
    path = folder / "teacher.onnx"
    onnx.save(model, path)
    return TeacherSpec(path=path, preprocessing=digits.preprocessing)


def test_caches_of_a_teacher_with_other_classes_are_those_of_the_dataset(digits: Digits, tmp_path: Path) -> None:
    """And names that change nothing are no other cache."""
    job, events = digits.job("kd"), list[object]()
    other = job.model_copy(update={"teacher": with_more_classes(digits, tmp_path)})
    folders = digits.folders.model_copy(update={"data_dir": tmp_path / "data"})
    plan = plan_caches(other, folders, events.append, never, threads=1, device="cpu")
    assert plan.train_cache.columns == tuple(range(11, 1, -1))
    said = [event.message for event in events if isinstance(event, Log)]
    assert any("matched by name, 10 of the teacher's 12: '0' is column 11 ('0')" in message for message in said)
    build_caches(plan, folders, ignore, never, threads=1, device="cpu")
    assert plan.test_cache is not None
    assert digits.plan.test_cache is not None
    mapped, own = (
        CacheReader(place.caches, spec).logits(0)
        for place, spec in ((folders, plan.test_cache), (digits.folders, digits.plan.test_cache))
    )
    np.testing.assert_allclose(mapped, own, atol=1e-3)
    folders.teachers.mkdir()
    shutil.copy(other.teacher.path, folders.teachers / f"{plan.test_cache.teacher_sha256}.onnx")
    assert recheck_rows(folders.data_dir, plan.test_cache.key, 8).ok
    named = job.model_copy(update={"teacher": job.teacher.model_copy(update={"class_names": tuple("0123456789")})})
    assert plan_caches(named, digits.folders, ignore, never, threads=1).caches == digits.plan.caches


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_plan_caches_refuses_methods_that_read_the_size_of_logits_where_a_softmax_took_it(
    operator: str, digits: Digits, tmp_path: Path
) -> None:
    teacher, events = with_softmax(digits, operator, tmp_path), list[object]()
    expression = {"preset": "custom", "terms": [{"policy": {"kind": "expression", "temperature": "max"}}]}
    methods = tuple(parse_method(method) for method in ("kd", "normkd", "dtkd", "ats", "annealing_kd", expression))
    job = digits.job("kd").model_copy(update={"teacher": teacher, "methods": methods})
    named = "'dtkd' (policy 'dtkd'), 'ats' (policy 'asymmetric'), 'annealing_kd' (loss 'mse'), 'custom' (policy 'expre"
    with pytest.raises(ContractViolation, match=re.escape(f"log-probabilities, and {named}")):
        plan_caches(job, digits.folders, ignore, never, threads=1)
    insisting = job.model_copy(update={"accept_teacher": True})
    plan_caches(insisting, digits.folders, events.append, never, threads=1)
    warnings = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    assert any("They are trained, for the job says accept_teacher" in warning for warning in warnings)
    plan_caches(job.model_copy(update={"methods": methods[:2]}), digits.folders, ignore, never, threads=1)


def test_inference_tells_its_progress(digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    events: list[object] = []
    counters = tmp_path / "forwards"
    plan = plan_caches(digits.job("kd"), folders, events.append, never, threads=1, forwards_in=counters)
    assert count_forwards(counters) == plan.contract_forwards > 0
    run = build_caches(plan, folders, events.append, never, threads=1, forwards_in=counters)
    assert count_forwards(counters) == run
    last = [e for e in events if isinstance(e, InferenceProgress) and e.split == "train"][-1]
    assert last.rows_done == last.rows_total == plan.train_cache.views * plan.train_cache.samples
    # Where it was inferred is told, and kept with the cache as it was, not as it was asked for.
    assert any(isinstance(e, Log) and e.message.startswith("inference on CPUExecutionProvider: ") for e in events)
    provenance = Catalog(folders.caches).get(plan.train_cache.key).provenance
    assert [origin["provider"] for origin in provenance["computed_on"]] == ["CPUExecutionProvider"]


def test_preflight_hears_that_it_is_to_stop_counts_what_it_has_run_and_records_nothing(
    digits: Digits, tmp_path: Path
) -> None:
    folders, counters = Folders(data_dir=tmp_path, data_root=tmp_path), tmp_path / "forwards"
    shutil.copytree(digits.folders.datasets, folders.datasets)
    for calls in (1, 3):
        before = count_forwards(counters)
        told: list[bool] = []

        def stop(told: list[bool] = told, calls: int = calls, before: int = before) -> bool:
            told.append(count_forwards(counters) > before)
            return sum(told) >= calls

        with pytest.raises(Stopped, match="while the teacher was tried on the data"):
            plan_caches(digits.job("kd"), folders, ignore, stop, threads=1, forwards_in=counters)
        assert sum(told) == calls
        assert 0 < count_forwards(counters) - before < digits.plan.contract_forwards
    assert not list(folders.contracts.glob("*"))


def test_forward_counters_add_up_and_are_topped_up_to_what_was_told_before(tmp_path: Path) -> None:
    """As after a backup was restored, which has none, or of a version that had none."""
    assert count_forwards(tmp_path / "none") == 0
    folder = tmp_path / "forwards"
    for rows in (5, 7):
        counter = ForwardCounter(folder)
        counter.add(rows)
        counter.add(1)
    assert count_forwards(folder) == 14
    for told, total in ((3, 14), (20, 20), (20, 20), (25, 25)):
        carry_over(folder, told)
        assert count_forwards(folder) == total
    # A full disk is told of by what inference has to write.
    (tmp_path / "file").touch()
    ForwardCounter(tmp_path / "file" / "forwards").add(1)
    # Killed between making its file and the first number.
    (folder / "new").touch()
    assert count_forwards(folder) == 25


def test_a_flipped_bit_is_found_before_any_student_trains(digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path, data_root=tmp_path)
    shutil.copytree(digits.folders.data_dir, tmp_path, dirs_exist_ok=True)
    chunk = next((folders.caches / digits.plan.train_cache.key / "logits").rglob("c/1/0/0"))
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CacheCorrupt, match=r"c/1/0/0.*submit the job again"):
        run_job(digits.job("kd", training=ONE_EPOCH), folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_onnx")
def test_a_job_on_a_full_disk_goes_on_with_every_byte_of_room_it_is_given(digits: Digits, tmp_path: Path) -> None:
    job = digits.job("kd", training=ONE_EPOCH)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    (tmp_path / "disk").mkdir()
    report = on_a_small_disk("4m", tmp_path / "disk", tmp_path / "job.json", digits.folders.data_dir)
    refusals = report["refusals"]
    assert [one["left"] for one in refusals] == [[]] * len(refusals)
    # Whatever has to be written is refused in its turn, with what it takes, and what is there stays.
    full = [one for one in refusals if one["error"] == "DiskFull"]
    assert all(re.search(r"no room to write \d+ bytes under .* \(\d+ bytes are free", one["message"]) for one in full)
    assert {0, 1} < {one["blocks"] for one in full}
    low = [one["message"] for one in refusals if one["error"] == "DiskLow"]
    pattern = r"writing (a marker of a smoke run|a checkpoint of|a run's artifacts)( [\d,]+ bytes)? \([\d,]+ bytes are"
    written = [found[1] for message in low if (found := re.search(pattern, message))]
    assert list(dict.fromkeys(written)) == ["a marker of a smoke run", "a checkpoint of", "a run's artifacts"]
    assert len(full) + len(written) == len(refusals)
    blocks = [one["blocks"] for one in refusals]
    assert blocks == sorted(blocks)
    # The last time everything was inferred already; and all is as if there had been room from the start.
    assert report["forwards"] == 0
    folders = Folders(data_dir=tmp_path / "peace", data_root=tmp_path)
    shutil.copytree(digits.folders.datasets, folders.datasets)
    run_job(job, folders, tmp_path / "out")
    assert report["outputs"] == run_outputs(folders, tmp_path / "out")


def test_a_teacher_that_changed_on_disk_is_refused(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(digits.teacher_spec.path.read_bytes() + b"\0")
    changed = digits.teacher_spec.model_copy(update={"path": path, "sha256": file_sha256(digits.teacher_spec.path)})
    with pytest.raises(InvalidTeacher, match="changed after it was uploaded"):
        identify(changed)
    with pytest.raises(InvalidTeacher, match="does not exist"):
        identify(changed.model_copy(update={"path": tmp_path / "none.onnx"}))


def test_labels_in_another_order_are_refused_before_any_work(digits: Digits, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        arrays[f"{name}_images"] = np.asarray(split.images_NHWC)
        arrays[f"{name}_labels"] = (np.asarray(split.labels_N) + rng.integers(1, 2)) % 10
    np.savez(tmp_path / "shifted.npz", **arrays)
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    job = digits.job("kd").model_copy(update={"dataset": NpzDataset(path="shifted.npz")})
    with pytest.raises(ContractViolation, match="label"):
        plan_caches(job, folders, ignore, never, threads=1)
    assert not list((tmp_path / "data").glob("caches/*"))


def test_a_batch_size_that_a_student_cannot_be_trained_with_is_refused_before_the_teacher_runs(
    digits: Digits, tmp_path: Path
) -> None:
    job = digits.job("ce", training=ONE_EPOCH.model_copy(update={"batch_size": 1}))
    events: list[object] = []
    with pytest.raises(InvalidJob, match="'cnn_s' has batch normalisation, which needs 2 pictures or more"):
        run_job(job, Folders(data_dir=tmp_path / "data", data_root=tmp_path), tmp_path / "out", events.append)
    assert not [event for event in events if isinstance(event, PreflightChecked | InferenceProgress)]


def test_check_contract_asks_each_job_whether_it_insists(digits: Digits, tmp_path: Path) -> None:
    """The record of a teacher that one job accepted lets no other job through, and each is warned."""
    arrays = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        labels = np.asarray(split.labels_N)
        arrays[f"{name}_images"] = np.asarray(split.images_NHWC)
        arrays[f"{name}_labels"] = np.where((labels == 3) | (labels == 5), 8 - labels, labels)
    np.savez(tmp_path / "swapped.npz", **arrays)
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    strict = digits.job("kd").model_copy(update={"dataset": NpzDataset(path="swapped.npz")})
    insists = strict.model_copy(update={"accept_teacher": True})
    assert "accept_teacher" not in strict.model_dump()
    assert JobSpec.model_validate_json(insists.model_dump_json()) == insists
    order = "label order seems to differ: its class 3 is mostly '5'"
    forwards = []
    for _ in range(2):
        with pytest.raises(ContractViolation, match=order):
            plan_caches(strict, folders, ignore, never, threads=1)
        events: list[object] = []
        forwards.append(plan_caches(insists, folders, events.append, never, threads=1).contract_forwards)
        told = [e.message for e in events if isinstance(e, Log) and e.level == "warning" and order in e.message]
        assert len(told) == 1
        assert told[0].endswith("for the job says accept_teacher")
    assert forwards[0] > 0 == forwards[1]


def test_recomputed_rows_agree_and_a_foreign_teacher_does_not(digits: Digits, tmp_path: Path) -> None:
    data_dir = digits.folders.data_dir
    key = digits.plan.train_cache.key
    (data_dir / "teachers").mkdir(exist_ok=True)
    path = data_dir / "teachers" / f"{digits.plan.train_cache.teacher_sha256}.onnx"
    with pytest.raises(InvalidTeacher, match="is gone"):
        recheck_rows(data_dir, key, 50)
    path.write_bytes(digits.teacher_spec.path.read_bytes())
    report = recheck_rows(data_dir, key, 50)
    assert report.rows == 50
    assert report.ok
    assert 0 < report.max_abs_difference <= report.allowed

    other = run_other_teacher(digits, tmp_path)
    path.write_bytes(other.read_bytes())
    assert not recheck_rows(data_dir, key, 50).ok


def run_other_teacher(digits: Digits, folder: Path) -> Path:
    """A network of the same shape with other weights, under the first one's name."""
    model = pipeline.train_supervised(
        DigitsDataset(),
        "cnn_s",
        ONE_EPOCH,
        data_root=folder,
        work_dir=digits.folders.data_dir,
        out_dir=folder / "other",
    )
    return model.onnx_path


# ---------------------------------------------------------------------------------- the command line


def test_a_job_runs_from_the_command_line(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = digits.job("kd", training=ONE_EPOCH)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    arguments = [str(tmp_path / "job.json"), "--data-dir", str(tmp_path / "data"), "--data-root", str(tmp_path)]
    assert pipeline.main(arguments) == 0
    assert "teacher forward passes:" in capsys.readouterr().out
    assert (tmp_path / "data/local/run-0/artifacts/result.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["kdd"]}, "unknown method 'kdd'. Did you mean 'kd'?"),
        ({"students": ["resnet9"]}, "unknown student 'resnet9'"),
        ({"training": {"epochs": 0}}, "epochs"),
        ({"training": {"epoch": 3}}, "Did you mean 'epochs'?"),
        ({"methods": [{"preset": "kd", "temperature": 0}]}, "temperature"),
        ({"methods": [{"preset": "kd", "temperature": "warm"}]}, "temperature"),
        ({"methods": ["kd", "kd"]}, "twice"),
        ({"views": {"count": 4}}, "without augmentation all views are the same"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    change: dict[str, object],
    message: str,
    digits: Digits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = {**json.loads(digits.job("kd").model_dump_json()), **change}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert pipeline.main([str(tmp_path / "job.json"), "--data-dir", str(tmp_path / "data")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("encoding", "message"), [("utf-8-sig", "unknown method 'kdd'"), ("utf-16", "is UTF-16, as")])
def test_a_job_file_of_windows_is_read_or_told_what_to_do(
    encoding: str, message: str, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {**json.loads(digits.job("kd").model_dump_json()), "methods": ["kdd"]}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding=encoding)
    assert pipeline.main([str(tmp_path / "job.json"), "--data-dir", str(tmp_path / "data")]) == 1
    assert message in capsys.readouterr().err


def test_a_job_spec_reads_its_own_json(digits: Digits) -> None:
    job = digits.job("kd", {"preset": "dtkd", "temperature": 3.0})
    assert JobSpec.model_validate_json(job.model_dump_json()) == job


def test_waiting_runs_share_processes_only_where_there_are_more_of_them_than_slots() -> None:
    def runs(*seeds: int) -> list[RunSpec]:
        student, method = StudentSpec(name="cnn_s"), parse_method("kd")
        return [RunSpec(index=n, student=student, method=method, seed=seed) for n, seed in enumerate(seeds)]

    def indices(waiting: list[RunSpec], slots: int, largest: int, alone: Collection[int] = ()) -> list[list[int]]:
        groups = share_out(waiting, slots, largest, alone, batches_of=lambda run: run.seed)
        return [[run.index for run in group] for group in groups]

    assert indices(runs(0, 0), 2, 4) == [[0], [1]]
    assert indices(runs(0, 0, 0, 0, 0), 2, 4) == [[0, 1, 2], [3, 4]]
    assert indices(runs(*[0] * 12), 2, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert indices(runs(0, 1, 0, 1), 1, 4) == [[0, 2]]
    assert indices(runs(0, 1, 0, 1, 0), 2, 4) == [[0, 2, 4], [1, 3]]
    assert indices(runs(0, 0, 0, 0), 1, 1) == [[0]]
    assert indices(runs(0, 0, 0, 0), 1, 4, alone={0}) == [[0]]
    assert indices(runs(0, 0, 0, 0), 1, 4, alone={2}) == [[0, 1, 3]]
    assert indices(runs(0, 0), 0, 4) == []
