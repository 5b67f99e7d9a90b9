"""Gallery and temperatures of runs: the rows that a plain computation finds, and refusals with their reasons."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sqlalchemy import insert, update
from typer.testing import CliRunner

from service.api.gallery import kept_logits, rows
from service.api.gallery.gallery import Sources
from service.api.gallery.row_temperatures import HELD_OUT, STAND_IN
from service.cli import app as cli
from service.client.client import Client
from service.db.models import ArtifactRecord, JobRecord, RunRecord
from service.db.states import State
from store import CacheReader, CacheSpec
from tests.support.service_helpers import Api, make_settings, running_api
from tests.support.store_cases import make_spec, write_cache
from workers.data.kinds.digits import DigitsDataset
from workers.data.preparation.prepare import prepare
from workers.methods.temperature_bins import count
from workers.teacher.cached_views import CachedViews

METHODS = [
    "ce",
    {"preset": "kd", "temperature": 3.0},
    "lskd",
    "normkd",
    {
        "preset": "custom",
        "name": "of_cache",
        "terms": [{"policy": {"kind": "expression", "temperature": "1 + epoch * max / max_mean + 0 * max"}}],
    },
    {
        "preset": "custom",
        "name": "of_sample",
        "terms": [{"policy": {"kind": "expression", "temperature": "clip(sample_std, 1, 8)"}}],
    },
]


@dataclass(frozen=True)
class Trained:
    """A job of a run for each method on digits, whose runs have kept the same logits of the test split."""

    api: Api
    job_id: str
    runs: list[str]
    test: CacheReader
    train: CacheReader
    student_NC: np.ndarray
    labels_N: np.ndarray

    def gallery(self, method: int, **query: object) -> Any:  # noqa: ANN401  # JSON
        return self.api.client.get(f"/v1/runs/{self.runs[method]}/gallery", params=query)


def test_gallery_has_the_heavier_label_of_views_that_are_mixed(tmp_path: Path) -> None:
    train = prepare(DigitsDataset(train_per_class=2), "train", tmp_path, tmp_path)
    for augmentation in ({"recipe": "crop_flip"}, {"recipe": "crop_flip", "mixup": {"alpha": 4.0}}):
        spec = make_spec(
            dataset_fingerprint=train.fingerprint, samples=20, views=2, classes=10, augmentation=augmentation
        )
        write_cache(tmp_path / "caches", spec)
        sources = Sources(RunRecord(), CacheReader(tmp_path / "caches", spec), None, train, (tmp_path, None))
        assert sources.is_mixed == ("mixup" in augmentation)
        for view in (0, 1):
            labels_N = sources.labels(view)
            assert labels_N is not None
            if not sources.is_mixed:
                np.testing.assert_array_equal(labels_N, train.labels_N)
                continue
            mixing = CachedViews.of(spec, train).draw_mixing(view, np.arange(20))
            assert mixing is not None
            is_own = mixing.weight >= 1 << 15
            assert 2 < is_own.sum() < 18
            expected = np.where(is_own, train.labels_N, train.labels_N[mixing.sample])
            np.testing.assert_array_equal(labels_N, expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("gallery")
    with running_api(make_settings(folder)) as api:
        settings = api.settings
        splits = {s: prepare(DigitsDataset(), s, settings.data_root, settings.datasets_dir) for s in ("train", "test")}

        def cache(split: Any, **changes: object) -> CacheSpec:  # noqa: ANN401  # a name of a split
            known = splits[split]
            spec = make_spec(
                dataset_fingerprint=known.fingerprint, split=split, samples=known.samples, classes=10, **changes
            )
            write_cache(settings.caches_dir, spec)
            return spec

        specs = {"test": cache("test"), "train": cache("train", views=2, augmentation={"recipe": "crop_flip"})}
        job = api.post_job(methods=METHODS)
        samples = splits["test"].samples
        student_NC = np.random.default_rng(1).normal(0, 2, (samples, 10)).astype(np.float16)
        student_NC -= student_NC.max(axis=1, keepdims=True)
        labels_N = np.asarray(splits["test"].labels_N)
        save_file({"test": student_NC, "test_labels": labels_N.copy()}, settings.data_dir / kept_logits.LOGITS)
        keys = {split: spec.key for split, spec in specs.items()}
        with api.context.database.write() as session:
            session.execute(update(JobRecord).values(caches=keys))
            session.execute(update(RunRecord).values(epoch=3, state=State.SUCCEEDED))
            session.execute(
                insert(ArtifactRecord),
                [artifact(settings.data_dir / kept_logits.LOGITS, run_id) for run_id in job["run_ids"]],
            )
        readers = [CacheReader(settings.caches_dir, specs[split]) for split in ("test", "train")]
        yield Trained(api, job["id"], job["run_ids"], *readers, student_NC, labels_N)
        for reader in readers:
            reader.close()


def artifact(path: Path, run_id: str) -> dict[str, object]:
    """Row of a file in the data directory."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    columns = {"run_id": run_id, "attempt": 0, "name": path.name, "path": path.name, "media_type": "x/y"}
    return {**columns, "size_bytes": len(content), "sha256": sha256}


def test_gallery_of_disagreement_has_the_rows_of_the_largest_jensen_shannon_divergence(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in memory at once; with the logits of both networks as they were kept."""
    teacher_NC = trained.test.logits(0).astype(np.float64)
    both = softmax(teacher_NC, axis=1), softmax(trained.student_NC.astype(np.float64), axis=1)
    expected_N = jensenshannon(*both, axis=1) ** 2
    whole = trained.gallery(0, by="disagreement").json()
    monkeypatch.setattr(kept_logits, "CELLS", 70)
    assert trained.gallery(0, by="disagreement").json() == whole
    order = np.argsort(-expected_N)[:24]
    assert [row["row"] for row in whole["data"]] == order.tolist()
    np.testing.assert_allclose([row["value"] for row in whole["data"]], expected_N[order], rtol=1e-4)
    first = whole["data"][0]
    np.testing.assert_allclose(first["teacher"]["logits"], teacher_NC[order[0]], atol=1e-4)
    np.testing.assert_allclose(first["student"]["logits"], trained.student_NC[order[0]].astype(float), atol=1e-4)
    assert first["student"]["confidence"] == pytest.approx(both[1][order[0]].max())
    assert first["label"] == trained.labels_N[order[0]]
    assert (first["temperature"], "cross-entropy alone" in whole["notes"][0]) == (None, True)
    assert trained.api.client.get(first["picture"]).headers["content-type"] == "image/png"


def test_gallery_of_mistakes_has_the_most_confident_ones_first(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few logits are read at a time, and no more of them than are allowed."""
    teacher_NC = trained.test.logits(0).astype(np.float64)
    statistics = trained.test.statistics(0)
    confidence_N = np.exp(statistics["max"] - statistics["sharpness"])
    is_wrong_N = teacher_NC.argmax(axis=1) != trained.labels_N
    order = np.argsort(-confidence_N, kind="stable")
    wanted = order[is_wrong_N[order]][:10].tolist()
    assert 10 < is_wrong_N.sum() < len(order)
    for cells in (1 << 20, 30):
        monkeypatch.setattr(rows, "CELLS", cells)
        found = trained.gallery(1, by="teacher_mistakes", limit=10).json()
        assert [row["row"] for row in found["data"]] == wanted
    assert found["data"][0]["value"] == pytest.approx(confidence_N[wanted[0]], rel=1e-5)
    assert found["data"][0]["temperature"]["student"] == {"paper": 3.0, "divisor": 3.0}
    monkeypatch.setattr(rows, "MISTAKE_CELLS_MAX", 40)
    bounded = trained.gallery(1, by="teacher_mistakes", limit=10).json()
    assert len(bounded["data"]) <= 6
    assert "only the 4 rows" in bounded["notes"][-1]


@pytest.mark.parametrize(("by", "sign"), [("highest_temperature", -1), ("lowest_temperature", 1)])
def test_gallery_orders_by_the_temperature_that_varies(trained: Trained, by: str, sign: int) -> None:
    """The paper's T of lskd is one number, so what divides the logits decides; of normkd it is the paper's."""
    std_N = trained.test.statistics(0)["std"]
    order = np.argsort(sign * std_N, kind="stable")[:24].tolist()
    student_std_N = trained.student_NC.astype(np.float64).std(axis=1, ddof=1)
    for method, ordered_by, paper in ((2, "divisor", 2.0), (3, "paper", None)):
        found = trained.gallery(method, by=by).json()
        assert [row["row"] for row in found["data"]] == order
        assert (found["ordered_by"], found["notes"]) == (ordered_by, [])
        row = found["data"][0]
        factor = row["temperature"]["teacher"]["divisor"] / std_N[order[0]]
        assert row["temperature"]["teacher"]["paper"] == (paper or row["value"])
        # Of the student's kept logits, which are less the row's largest: a std does not know.
        assert row["temperature"]["student"]["divisor"] == pytest.approx(factor * student_std_N[order[0]], rel=1e-4)


def test_gallery_reads_statistics_of_the_training_cache_as_training_does(trained: Trained) -> None:
    """Its mean over all views, in the run's last epoch; one value a training picture says nothing of test pictures."""
    mean = np.mean([trained.train.statistics(view)["max"].astype(np.float64).mean() for view in (0, 1)])
    max_N = trained.test.statistics(0)["max"]
    for epoch, query in ((3, {}), (1, {"epoch": 1}), (3, {"epoch": 1000})):
        row = trained.gallery(4, by="highest_temperature", limit=1, **query).json()["data"][0]
        assert row["row"] == max_N.argmax()
        assert row["value"] == pytest.approx(1 + epoch * max_N.max() / mean, rel=1e-5)
    refused = trained.gallery(5, by="lowest_temperature")
    assert (refused.status_code, "other pictures" in refused.json()["detail"]) == (409, True)
    train = trained.gallery(5, by="highest_temperature", split="train", view=1).json()
    std_N = np.mean([trained.train.statistics(view)["std"] for view in (0, 1)], axis=0)
    assert train["data"][0]["value"] == pytest.approx(min(8.0, std_N.max()), rel=1e-5)
    assert train["data"][0]["student"] is None
    picture = trained.api.client.get(train["data"][0]["picture"])
    assert (picture.status_code, "view=1" in str(picture.url)) == (200, True)


def test_gallery_without_the_training_cache_has_what_needs_no_statistics_of_it(trained: Trained) -> None:
    folder = trained.api.settings.caches_dir / trained.train.spec.key
    aside = folder.rename(folder.with_name("aside"))
    try:
        refused = trained.gallery(4, by="highest_temperature")
        assert (refused.status_code, "cannot be read" in refused.json()["detail"]) == (409, True)
        found = trained.gallery(4, by="disagreement").json()
        assert (len(found["data"]), "cannot be read" in found["notes"][0]) == (24, True)
    finally:
        aside.rename(folder)


def test_gallery_of_train_says_that_held_out_rows_are_among_its(trained: Trained) -> None:
    assert trained.gallery(3, by="highest_temperature", split="train").json()["notes"] == [STAND_IN]
    with trained.api.context.database.write() as session:
        job = session.get_one(JobRecord, trained.job_id)
        before, job.plan = job.plan, {**job.plan, "validation": {"holdout": 0.1}}
    try:
        assert HELD_OUT in trained.gallery(3, by="highest_temperature", split="train").json()["notes"]
        terms = trained.api.client.get(f"/v1/jobs/{trained.job_id}/temperatures").json()["methods"]
        assert all(HELD_OUT in term["notes"] for method in terms for term in method["terms"])
    finally:
        with trained.api.context.database.write() as session:
            session.get_one(JobRecord, trained.job_id).plan = before


@pytest.mark.parametrize(
    ("method", "query", "status", "reason"),
    [
        (0, {"by": "highest_temperature"}, 409, "cross-entropy alone"),
        (1, {"by": "lowest_temperature"}, 409, "the same teacher temperature, 3"),
        (3, {"by": "lowest_temperature", "term": 1}, 409, "no term 1"),
        (1, {"by": "disagreement", "split": "train"}, 409, "kept no logits of train"),
        (1, {"by": "disagreement", "split": "validation"}, 409, "no cache of validation"),
        (1, {"by": "disagreement", "view": 1}, 404, "view 1 does not exist"),
        (1, {"by": "anything"}, 422, "teacher_mistakes"),
    ],
)
def test_gallery_refuses_with_the_reason(
    trained: Trained, method: int, query: dict[str, object], status: int, reason: str
) -> None:
    refused = trained.gallery(method, **query)
    assert (refused.status_code, reason in refused.json()["detail"]) == (status, True), refused.text


def test_temperatures_of_methods_and_runs_are_counted_in_common_bins(trained: Trained) -> None:
    """On the training cache by their policies, and as a run has measured them."""
    api, run_id = trained.api, trained.runs[3]
    std_N = trained.train.statistics(0)["std"]
    measured = count(std_N * 4).document()
    constant = {"mean": 3.0, "std": 0.0, "q50": 3.0}
    epochs = [
        {
            "epoch": epoch,
            "teacher": {"paper": measured, "divisor": measured},
            "student": {"paper": constant, "divisor": constant},
        }
        for epoch in (1, 2)
    ]
    path = api.settings.data_dir / "temperatures.json"
    path.write_text(
        json.dumps({"bins": {"least_exponent": -10, "bins_per_octave": 16, "count": 384}, "epochs": epochs})
    )
    with api.context.database.write() as session:
        session.execute(insert(ArtifactRecord), [artifact(path, run_id)])
    found = api.client.get(f"/v1/jobs/{trained.job_id}/temperatures").json()
    edges = np.array(found["edges"])
    np.testing.assert_allclose(np.diff(np.log2(edges)), 1 / 16, atol=1e-6)
    by_method = {method["method"]: method for method in found["methods"]}
    assert "cross-entropy alone" in by_method["ce"]["reason"]
    normkd = next(method for name, method in by_method.items() if name.startswith("normkd"))["terms"][0]
    expected, _ = np.histogram(2 * std_N, edges)
    np.testing.assert_allclose(normkd["teacher"]["shares"], expected / len(std_N), atol=1e-5)
    assert sum(normkd["teacher"]["shares"]) == pytest.approx(1.0, abs=1e-4)
    run = next(run for run in found["runs"] if run["run_id"] == run_id)
    assert (run["epoch"], run["method"].startswith("normkd")) == (2, True)
    expected, _ = np.histogram(4 * std_N, edges)
    np.testing.assert_allclose(run["teacher"]["shares"], expected / len(std_N), atol=1e-5)
    [place] = np.flatnonzero(run["student"]["shares"])
    assert edges[place] <= 3.0 < edges[place + 1]
    assert run["student"]["shares"][place] == 1.0
    others = [run for run in found["runs"] if run["run_id"] != run_id]
    assert all(run["teacher"] is None and run["reason"] for run in others)
    first = api.client.get(f"/v1/jobs/{trained.job_id}/temperatures", params={"epoch": 7, "kind": "divisor"}).json()
    assert next(run for run in first["runs"] if run["run_id"] == run_id)["reason"] == "it has no epoch 7"


def test_cache_says_what_it_has_saved_and_its_statistics(trained: Trained) -> None:
    """Five of six runs distil, each on every training picture in each of three epochs."""
    client, spec = trained.api.client, trained.train.spec
    use = client.get(f"/v1/caches/{spec.key}").json()["use"]
    assert [(job["id"], job["runs"], job["forwards"]) for job in use["jobs"]] == [(trained.job_id, 5, 15 * 1442)]
    assert (use["forwards_run"], use["forwards_saved"]) == (2 * 1442, 13 * 1442)
    assert (use["break_even_epochs"], use["seconds_saved"]) == (2.0, None)
    ready = {"type": "cache_ready", "cache": spec.key, "split": "train", "views": 2, "rows_total": 2884}
    claimed = trained.api.records.claim_job()
    assert claimed is not None
    event = {**ready, "rows_inferred": 2884, "seconds": 4.0}
    trained.api.records.record_events(trained.job_id, None, claimed.attempt, [(0, event)])
    use = client.get(f"/v1/caches/{spec.key}").json()["use"]
    assert (use["rows_per_s"], use["seconds_saved"]) == (721.0, 13 * 1442 / 721.0)
    shown = CliRunner().invoke(cli, ["--url", trained.api.url, "cache", "show", spec.key]).output
    assert "18,746 forward passes, 26.0 s at 721 pictures/s" in shown
    test = client.get(f"/v1/caches/{trained.test.spec.key}").json()["use"]
    assert (test["jobs"][0]["forwards"], test["break_even_epochs"]) == (5 * 355, None)
    shown = client.get(f"/v1/caches/{spec.key}/statistics", params={"view": 1, "bins": 7}).json()
    std_N = trained.train.statistics(1)["std"]
    counts, edges = np.histogram(std_N.astype(np.float64), 7)
    assert shown["statistics"]["std"]["histogram"] == {"counts": counts.tolist(), "edges": edges.tolist()}
    confidence = softmax(trained.train.logits(1).astype(np.float64), axis=1).max(axis=1)
    assert shown["statistics"]["confidence"]["mean"] == pytest.approx(confidence.mean(), rel=1e-3)
    assert client.get(f"/v1/caches/{spec.key}/statistics", params={"view": 2}).status_code == 404


def test_client_has_what_pages_show(trained: Trained) -> None:
    """As the routes give it; a link that leads elsewhere is not followed."""
    with Client(trained.api.url) as client:
        fingerprint = trained.test.spec.dataset_fingerprint
        assert [split["samples"] for split in client.splits(fingerprint)] == [355]
        pictures = list(client.pictures(fingerprint, split="test", label=3))
        assert [row["row"] for row in pictures] == np.flatnonzero(trained.labels_N == 3).tolist()
        assert client.picture(pictures[0]["picture"]).startswith(b"\x89PNG")
        with pytest.raises(ValueError, match="no link to a picture"):
            client.picture("http://127.0.0.1:9/v1/x.png")
        mistakes = trained.gallery(1, by="teacher_mistakes", limit=3).json()
        assert client.gallery(trained.runs[1], "teacher_mistakes", limit=3) == mistakes
        views = trained.gallery(4, by="highest_temperature", split="train", view=1, epoch=2).json()
        assert client.gallery(trained.runs[4], "highest_temperature", split="train", view=1, epoch=2) == views
        assert client.temperatures(trained.job_id, epoch=1)["kind"] == "paper"
        assert [run["epoch"] for run in client.curves(trained.job_id, metrics=["a b", "c"])["runs"]] == [[]] * 6
        assert client.cache_statistics(trained.test.spec.key, bins=3)["rows"] == 355
