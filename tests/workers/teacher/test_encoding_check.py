"""Lossy caches from the job to the trained student: what is judged, what is refused, what it costs."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from pydantic import JsonValue, ValidationError

from service.cli import main
from store import CacheReader, CacheSpec, CacheWriter, Catalog, Encoding, Reference, SparseEncoding
from store.encodings import codec
from store.statistics import row_statistics
from tests.support.digits import SMALL, Digits
from tests.support.service_helpers import Api
from tests.support.store_cases import make_spec
from workers.config.cache import CacheOptions
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.errors import InvalidJob, LossyCache, NotFinite
from workers.events import CacheReady, Log, ignore, never
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.pipeline import run_job
from workers.teacher.build_caches import build_caches
from workers.teacher.cache_plan import CachePlan, EncodingCheck
from workers.teacher.encoding_check import BAR, check_lossy_encoding, gradient_cosine
from workers.teacher.plan_caches import plan_caches
from workers.teacher.recheck import recheck_rows
from workers.tools.parity import check_parity

pytest_plugins = ["tests.support.service_fixtures"]

ONE_EPOCH = SMALL.model_copy(update={"epochs": 1})
# The only sizes at which ten classes take fewer bytes than dense: nearly nothing is kept.
SPARSE: dict[str, JsonValue] = {"kind": "sparse", "top": 1, "tail": 2, "temperature": 4.0}
TOP_HEAVY = SparseEncoding(kind="sparse", top=16, tail=16, temperature=4)
CLASSES, ROWS = 400, 96

rng = np.random.default_rng(0)
EXACT = np.stack([rng.permutation(-1.5 * np.log(np.arange(1, CLASSES + 1))) for _ in range(ROWS)])
EXACT = (EXACT + rng.normal(0, 1, EXACT.shape)).astype(np.float32)  # Zipf's law with noise
LABELS = np.where(rng.random(ROWS) < 0.8, EXACT.argmax(axis=1), rng.integers(0, CLASSES, ROWS))


def spec_of(encoding: Encoding) -> CacheSpec:
    return make_spec(encoding=encoding, dtype="float32", classes=CLASSES, samples=ROWS)


def reference(encoding: Encoding) -> Reference:
    """EXACT, and what an encoding makes of it."""
    spec, decoded = spec_of(encoding), np.empty_like(EXACT)
    stored = codec.encode(spec, EXACT, 0, 0, LABELS)
    codec.decode(spec, stored, 0, np.arange(ROWS), decoded)
    return Reference(EXACT, decoded, row_statistics(EXACT))


def cosine(method: object, decoded: Reference, epochs: int = 1) -> float | None:
    return gradient_cosine(parse_method(method).expand(), decoded, torch.from_numpy(LABELS), epochs)


# -------------------------------------------------------------------------------------------------------- the judgement


@pytest.mark.parametrize("method", [name for name in PRESETS if name not in ("ce", "custom", "lud")])
def test_every_method_has_the_gradient_of_exact_logits_on_them_and_nearly_on_uint8(method: str) -> None:
    same = Reference(EXACT, EXACT, row_statistics(EXACT))
    assert cosine(method, same) == pytest.approx(1, abs=1e-9)
    nearly = cosine(method, reference("uint8"))
    assert nearly is not None
    assert BAR < nearly < 1


def test_the_cosine_is_that_of_the_difference_of_soft_targets() -> None:
    """kd's gradient is proportional to softmax(z_s / T) - softmax(z_t / T): computed here without its code."""
    lossy = reference(TOP_HEAVY)
    noise = torch.randn(EXACT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = 0.6 * torch.from_numpy(EXACT).double() + noise
    q, p, p_lossy = ((z / 4).softmax(dim=1) for z in (student, *map(torch.from_numpy, (EXACT, lossy.decoded))))
    expected = torch.nn.functional.cosine_similarity(q - p, q - p_lossy.double(), dim=1).mean()
    found = cosine({"preset": "kd", "temperature": 4}, lossy)
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert expected < 0.5


def test_other_logits_have_another_gradient() -> None:
    opposite = Reference(EXACT, -EXACT, row_statistics(EXACT))
    found = cosine("kd", opposite)
    assert found is not None
    assert found < 0.5


def test_plain_cross_entropy_reads_no_logits() -> None:
    assert cosine("ce", reference(TOP_HEAVY)) is None


def test_a_term_is_judged_in_the_first_epoch_in_which_it_counts() -> None:
    policy = {"kind": "expression", "temperature": "4", "weight": "where(epoch < 3, 0, 1)"}
    late = {"preset": "custom", "terms": [{"policy": policy}]}
    lossy = reference(TOP_HEAVY)
    assert cosine(late, lossy, epochs=2) is None
    assert cosine(late, lossy, epochs=3) == pytest.approx(cosine({"preset": "kd", "temperature": 4}, lossy), rel=1e-6)


def verdict(encoding: Encoding, *methods: object, allow_lossy: bool = False) -> list[Log]:
    events: list[object] = []
    guard = EncodingCheck(methods=tuple(map(parse_method, methods)), epochs=2, allow_lossy=allow_lossy)
    check_lossy_encoding(guard, spec_of(encoding), reference(encoding), torch.from_numpy(LABELS), emit=events.append)
    logs = [event for event in events if isinstance(event, Log)]
    assert len(logs) == len(events)
    return logs


def test_few_logits_at_a_high_temperature_are_refused_and_uint8_is_not() -> None:
    (log,) = verdict("uint8", "kd", "dkd")
    assert log.level == "info"
    assert "encoding uint8 keeps the gradient's direction" in log.message
    with pytest.raises(LossyCache) as refused:
        verdict(TOP_HEAVY, "kd", {"preset": "dkd", "beta": 2.0})
    message = str(refused.value)
    found = cosine("kd", reference(TOP_HEAVY))
    for part in (
        "sparse (top 16, tail 16, temperature 4)",
        f"kd {found:.4f}, dkd(beta=2) ",
        "the bar is 0.98",
        "uint8, dense",
        "a higher top or tail",
        "another temperature",
        '"allow_lossy": true',
    ):
        assert part in message


def test_one_method_below_the_bar_is_enough() -> None:
    wide = SparseEncoding(kind="sparse", top=90, tail=80, temperature=1)
    plain = {"preset": "kd", "temperature": 1}
    (log,) = verdict(wide, "ce", plain)
    assert log.level == "info"
    with pytest.raises(LossyCache, match=r"kd\(temperature=1\) 0\.99\d+, kd 0\.6\d+; the bar"):
        verdict(wide, "ce", plain, "kd")
    assert verdict(wide, "ce") == []


def test_what_is_allowed_is_said() -> None:
    (log,) = verdict(TOP_HEAVY, "kd", allow_lossy=True)
    assert log.level == "warning"
    assert "trained nevertheless" in log.message


def test_a_method_that_cannot_be_computed_on_the_rows_is_refused_by_name() -> None:
    policy = {"kind": "expression", "temperature": "max - 100"}
    with pytest.raises(NotFinite, match="'mine'"):
        verdict("uint8", {"preset": "custom", "name": "mine", "terms": [{"policy": policy}]})


# ----------------------------------------------------------------------------------------------------------------- jobs


def lossy_job(digits: Digits, *methods: str, **cache: JsonValue) -> JobSpec:
    job = digits.job(*(methods or ("kd",)), training=ONE_EPOCH)
    return job.model_copy(update={"cache": CacheOptions.model_validate(cache)})


@pytest.mark.usefixtures("without_onnx")
def test_a_job_trains_on_uint8_and_is_tested_beside_dense_logits(digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    events: list[object] = []
    run_job(lossy_job(digits, "ce", "kd", encoding="uint8"), folders, tmp_path / "1", events.append)
    specs = {entry.spec.split: entry.spec for entry in Catalog(folders.caches).list() if entry.spec}
    assert (specs["train"].encoding, specs["train"].dtype) == ("uint8", "float32")
    assert (specs["test"].encoding, specs["test"].dtype) == ("dense", "float16")
    samples = {split: spec.views * spec.samples for split, spec in specs.items()}
    ready = {event.split: event.rows_inferred for event in events if isinstance(event, CacheReady)}
    assert ready == samples
    assert any("keeps the gradient's direction" in event.message for event in events if isinstance(event, Log))

    run_job(digits.job("kd", training=ONE_EPOCH), folders, tmp_path / "dense")
    metrics = [tmp_path / run / "artifacts/metrics.jsonl" for run in ("1/run-1", "dense/run-0")]
    losses = [json.loads(path.read_text().splitlines()[-1])["train_loss"] for path in metrics]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    again = run_job(lossy_job(digits, "dkd", encoding="uint8"), folders, tmp_path / "2")
    assert again.teacher_forwards == 0


@pytest.mark.usefixtures("without_onnx")
def test_a_refusal_costs_one_block(digits: Digits, tmp_path: Path) -> None:
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    job = lossy_job(digits, encoding=SPARSE)
    plan = plan_caches(job, folders, ignore, never, threads=1)
    blocks = plan.train_cache.blocks
    assert blocks == 2
    for _ in range(2):  # and the second time nothing
        with pytest.raises(LossyCache, match=r"kd 0\.\d+; the bar"):
            run_job(job, folders, tmp_path / "out")
        assert CacheWriter(folders.caches, plan.train_cache).pending_blocks() == [1]
        assert Catalog(folders.caches).get(plan.test_cache.key).rows_committed == 0

    allowed = lossy_job(digits, encoding=SPARSE, allow_lossy=True)
    events: list[object] = []
    outcome = run_job(allowed, folders, tmp_path / "out", events.append)
    rows = plan.train_cache.views * plan.train_cache.samples + plan.test_cache.samples
    assert outcome.teacher_forwards == rows - plan.train_cache.rows_in([0])
    assert [
        event.level for event in events if isinstance(event, Log) and "changes what is learned" in event.message
    ] == ["warning"]
    with CacheReader(folders.caches, plan.train_cache) as reader:
        labels_N = digits.train.labels_N
        kept_NC = reader.logits(0) > -1e5
        assert kept_NC[np.arange(len(labels_N)), labels_N].all()
        assert set(kept_NC.sum(axis=1)) == {3, 4}
    # Cross-entropy learns from labels: nothing is judged.
    assert run_job(lossy_job(digits, "ce", encoding=SPARSE), folders, tmp_path / "ce").teacher_forwards == 0
    with pytest.raises(LossyCache):
        run_job(lossy_job(digits, "ce", "kd", encoding=SPARSE), folders, tmp_path / "both")


def test_the_plan_keeps_its_guard_as_json(digits: Digits) -> None:
    plan = plan_caches(lossy_job(digits, "ce", "kd", encoding="uint8"), digits.folders, ignore, never, threads=1)
    assert plan.guard == EncodingCheck(methods=(parse_method("kd"),), epochs=1)
    assert CachePlan.model_validate_json(plan.model_dump_json()) == plan
    assert digits.plan.guard is None
    old = digits.plan.model_dump(mode="json", exclude={"guard"})
    assert CachePlan.model_validate(old) == digits.plan


def test_an_encoding_that_saves_nothing_is_the_users_mistake(digits: Digits) -> None:
    job = lossy_job(digits, encoding={**SPARSE, "top": 8})
    with pytest.raises(InvalidJob, match=r"cache\.encoding: .* are 11 classes, and there are 10"):
        plan_caches(job, digits.folders, ignore, never, threads=1)


@pytest.fixture(scope="module")
def kept(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Folders, CacheSpec]]:
    """A service's folder with a uint8 and a sparse cache, and the teacher."""
    root = tmp_path_factory.mktemp("lossy")
    folders = Folders(data_dir=root, data_root=root)
    found = {}
    for name, encoding in (("uint8", "uint8"), ("sparse", SPARSE)):
        job = lossy_job(digits, encoding=encoding, allow_lossy=True)
        plan = plan_caches(job, folders, ignore, never, threads=1)
        build_caches(plan, folders, ignore, never, threads=1)
        found[name] = (folders, plan.train_cache)
    folders.teachers.mkdir()
    path = folders.teachers / f"{plan.train_cache.teacher_sha256}.onnx"
    path.write_bytes(digits.teacher_spec.path.read_bytes())
    return found


@pytest.mark.parametrize("encoding", ["uint8", "sparse"])
def test_the_teacher_can_be_asked_again(
    kept: dict[str, tuple[Folders, CacheSpec]], encoding: str, tmp_path: Path
) -> None:
    folders, spec = kept[encoding]
    report = recheck_rows(folders.data_dir, spec.key, 60)
    assert report.ok
    assert report.allowed < 0.1
    # Another network under this one's name.
    genuine = folders.teachers / f"{spec.teacher_sha256}.onnx"
    foreign = Folders(data_dir=tmp_path, data_root=tmp_path)
    foreign.teachers.mkdir()
    for name in ("caches", "datasets"):
        (tmp_path / name).symlink_to(folders.data_dir / name)
    graph = onnx.load(genuine)
    graph.graph.initializer.append(numpy_helper.from_array(np.array(1.05, np.float32), "a little more"))
    output = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    graph.graph.node.append(helper.make_node("Mul", ["before", "a little more"], [output]))
    onnx.save(graph, foreign.teachers / genuine.name)
    assert not recheck_rows(tmp_path, spec.key, 60).ok


def test_a_lossy_cache_is_not_compared_with_the_live_teacher(kept: dict[str, tuple[Folders, CacheSpec]]) -> None:
    folders, spec = kept["uint8"]
    with pytest.raises(LossyCache, match=r"encoding uint8, which is not meant .* check a dense cache"):
        check_parity(folders.data_dir, spec.key, parse_method("kd"))


def test_the_list_of_caches_names_their_encoding(
    kept: dict[str, tuple[Folders, CacheSpec]], capsys: pytest.CaptureFixture[str]
) -> None:
    folders, _ = kept["uint8"]
    assert main(["cache", "--data-dir", str(folders.data_dir), "list"]) == 0
    printed = capsys.readouterr().out
    assert "train x 2 views, uint8" in printed
    assert "train x 2 views, sparse" in printed


# ----------------------------------------------------------------------------------------------------------------- HTTP


def test_a_job_names_its_encoding_over_http(shared_api: Api) -> None:
    for encoding in ("dense", "uint8", SPARSE):
        cache = {"encoding": encoding, "allow_lossy": True}
        response = shared_api.client.post("/v1/jobs", params={"dry_run": True}, json=shared_api.job_body(cache=cache))
        assert response.status_code in (200, 201), response.text
        found = response.json()["plan"]["cache"]
        expected = encoding if isinstance(encoding, str) else {**encoding, "seed": 0}
        assert found == {"dtype": "float16", "encoding": expected, "allow_lossy": True}


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"encoding": "uint4"}, 'an encoding is "dense", "uint8" or {"kind": "sparse"'),
        ({"encoding": {"kind": "sparse", "top": 1, "tail": 0, "temperature": 4}}, "greater than or equal to 1"),
        ({"encoding": {"kind": "sparse", "top": 1, "tail": 2}}, "Field required"),
        ({"encoding": {**SPARSE, "tall": 3}}, "Extra inputs are not permitted"),
        ({"encoding": {**SPARSE, "top": 7}}, "are 10 classes, and there are 10: lower them"),
        ({"encoding": {**SPARSE, "tail": 4}}, "take 22 bytes a row, a dense float16 row of 10 classes 20"),
        ({"encodings": "uint8"}, "Did you mean 'encoding'?"),
    ],
)
def test_a_wrong_encoding_is_answered_with_what_is_allowed(
    shared_api: Api, cache: dict[str, object], message: str
) -> None:
    response = shared_api.client.post("/v1/jobs", json=shared_api.job_body(cache=cache))
    assert response.status_code == 422
    problem = response.json()
    assert message in json.dumps([problem["detail"], problem.get("errors")]).replace('\\"', '"')


def test_options_are_checked_where_a_job_is_read_from_a_file() -> None:
    with pytest.raises(ValidationError, match='an encoding is "dense"'):
        CacheOptions.model_validate({"encoding": None})
