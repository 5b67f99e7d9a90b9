"""Figures of jobs: what is drawn, from which numbers, with whose names."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from service.cli import main
from service.plots import style, text
from service.plots.confusion import draw_confusion
from service.plots.curves import draw_curves, draw_temperatures
from service.plots.data import JobData, confusions
from service.plots.methods import draw_methods, interval
from service.plots.plot import plot
from service.plots.reliability import draw_reliability
from service.plots.series import band
from tests.support.plot_cases import HOSTILE, make_job, make_run
from tests.support.service_helpers import Api
from tests.support.tracker_cases import Work

pytest_plugins = ["tests.support.service_fixtures"]
SVG_TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with style.rc():
        yield


def figures(drawn: Iterator[tuple[str, Figure]]) -> dict[str, Figure]:
    return dict(drawn)


def svg_texts(path: Path) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.parse(path).iter(SVG_TEXT)]


# -------------------------------------------------------------------------------------------------------------- files


def test_plot_command_writes_svg_and_png_and_says_what_there_is_none_of(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(api)
    work.finish()
    assert main(["--url", api.url, "--json", "plot", work.run_ids[1], "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = {"curve-seconds", "curve-top1", "curve-train_loss", "methods-test"}
    assert {Path(file).name for file in printed["files"]} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    assert [sentence.split(":")[0] for sentence in printed["skipped"]] == [
        "no temperatures",
        "no reliability diagram",
        "no confusion matrix",
    ]
    texts = svg_texts(tmp_path / "out/curve-top1.svg")
    assert "top-1 accuracy, test (%)" in texts
    assert "epoch" in texts
    assert any(each.startswith(work.job_id) for each in texts)
    with Image.open(tmp_path / "out/curve-top1.png") as picture:
        assert min(picture.size) > 400


def test_plot_of_a_job_that_has_not_begun_draws_nothing_and_says_so(tmp_path: Path) -> None:
    data = make_job(methods=("ce",), seeds=1, epochs=1)
    waiting = JobData("waiting", data.job, [type(run)({**run.document, "result": None}, []) for run in data.runs])
    done = plot(waiting, tmp_path)
    assert done.files == []
    assert len(done.skipped) == 5


def test_same_data_are_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        [(name, figure)] = draw_confusion_of_test(make_job(methods=("kd",), seeds=1, classes=3))
        style.save(figure, folder, name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def draw_confusion_of_test(data: JobData) -> list[tuple[str, Figure]]:
    return [(name, figure) for name, figure in draw_confusion(data) if "test" in name]


# -------------------------------------------------------------------------------------------------------------- names


def test_groups_keep_methods_with_one_label_apart() -> None:
    data = make_job(methods=("custom", "kd"), seeds=2, epochs=1)
    for run in data.runs:
        loss = "kl" if run.document["method"] == "kd" else "dkd"
        run.document |= {"method": "custom", "method_spec": {"preset": "custom", "terms": [{"loss": loss}]}}
    assert data.methods == ["custom", "custom #2"]
    assert [(name, len(runs)) for _, name, runs in data.groups()] == [("custom", 2), ("custom #2", 2)]


def test_hostile_names_are_plain_text(tmp_path: Path) -> None:
    """Neither a formula, nor markup, nor a line break, nor left out for its underscore; and cut, not a mile long."""
    data = make_job(HOSTILE, students=(HOSTILE,), methods=(HOSTILE, "_hidden", "日本 кот"), seeds=1)
    style.save(figures(draw_curves(data))["curve-top1"], tmp_path, "hostile")
    texts = svg_texts(tmp_path / "hostile.svg")
    shown = "$x^2$ \\frac{1}{2} <b>&amp;</b>\\n_kd\\x1b[31m %s {0}"
    assert any(each.startswith(shown) and each.endswith("(n = 1)") for each in texts)
    assert "_hidden (n = 1)" in texts
    assert any(each.endswith("кот (n = 1)") for each in texts)
    assert not any("\x1b" in each or len(each) > 120 for each in texts)
    assert shown in "".join(texts)


def test_names_that_are_the_same_once_cut_are_told_apart() -> None:
    assert text.labels(["a" * 90 + "1", "b", "a" * 90 + "2"])[0].startswith("0: aaa")
    assert len(set(text.labels(["a" * 90 + "1", "b", "a" * 90 + "2"]))) == 3


def test_names_stay_within_their_figure() -> None:
    data = make_job(HOSTILE, students=("s", HOSTILE), methods=(HOSTILE, "_hidden"), seeds=2, classes=3)
    for drawn in (draw_methods(data), draw_reliability(data)):
        figure = next(drawn)[1]
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * figure.dpi
        for each in [figure._suptitle, *figure.legends, *(ax.title for ax in figure.axes)]:  # type: ignore[attr-defined]  # no getter gives the title itself
            box = each.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height


# ------------------------------------------------------------------------------------------------------------ numbers


def test_band_is_mean_and_deviation_over_seeds() -> None:
    runs = [make_run("s", "kd", seed, epochs=2, classes=3) for seed in (0, 1, 2)]
    for run, value in zip(runs, (0.1, 0.2, 0.6), strict=True):
        for line in run.metrics:
            line["top1"] = value
    found = band(runs, "top1")
    assert found is not None
    assert found.seeds == 3
    np.testing.assert_allclose(found.mean_E, [0.3, 0.3])
    np.testing.assert_allclose(found.std_E, [np.std([0.1, 0.2, 0.6], ddof=1)] * 2)
    assert band(runs, "nothing") is None


def test_curves_have_a_line_for_each_method_and_a_panel_for_each_student() -> None:
    data = make_job(students=("a", "b"), methods=("ce", "kd"), seeds=2, epochs=3, classes=3)
    drawn = figures(draw_curves(data))
    assert {"curve-top1", "curve-validation_top1", "curve-train_loss", "curve-agreement"} <= set(drawn)
    axes = drawn["curve-top1"].axes
    assert [len(ax.lines) for ax in axes] == [2, 2]
    found = band(
        [run for run in data.runs if run.document["student"] == "a" and run.document["method"] == "kd"], "top1"
    )
    assert found is not None
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), 100 * found.mean_E)
    assert set(figures(draw_temperatures(data))) == {"temperature-student", "temperature-teacher"}


def test_interval_is_students_t() -> None:
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    # 4.3027 is the 97.5 % quantile of t with 2 degrees of freedom.
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert interval(np.array([0.5, 0.5])) == (0.5, 0.5)


def test_methods_leave_runs_out_that_have_not_succeeded() -> None:
    data = make_job(methods=("kd",), seeds=3, epochs=1, classes=3)
    data.runs[0].document["state"] = "failed"
    [ax] = figures(draw_methods(data))["methods-test"].axes
    assert len(np.asarray(ax.lines[0].get_xdata())) == 2


def test_methods_are_compared_by_the_weights_that_leave() -> None:
    data = make_job(methods=("kd",), seeds=1, epochs=3, classes=3)
    data.runs[0].result["selected_epoch"] = 2
    [ax] = figures(draw_methods(data))["methods-test"].axes
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_xdata()), [100 * data.runs[0].metrics[1]["top1"]])


def test_methods_are_compared_by_averaged_weights_where_those_leave() -> None:
    data = make_job(methods=("kd",), seeds=1, epochs=1, classes=3)
    data.runs[0].result["weights"] = "ema"
    data.runs[0].metrics[0].update({"ema_top1": 0.25, "validation_ema_top1": 0.75})
    drawn = figures(draw_methods(data))
    shown = [np.asarray(drawn[name].axes[0].lines[0].get_xdata()) for name in ("methods-test", "methods-validation")]
    np.testing.assert_allclose(shown, [[25.0], [75.0]])


def test_confusion_is_summed_over_seeds_and_shares_are_of_each_label() -> None:
    data = make_job(methods=("kd",), seeds=2, epochs=1, classes=3)
    matrix = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    for run in data.runs:
        run.confusions = {"test": matrix}
    [(_, figure)] = draw_confusion_of_test(data)
    ax = figure.axes[0]
    [image] = ax.images
    np.testing.assert_allclose(np.asarray(image.get_array()), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])
    assert sorted(each.get_text() for each in ax.texts) == ["12", "4", "8"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["class 0", "class 1", "class 2"]


def test_confusion_of_very_many_classes_is_that_of_the_whole_evaluation() -> None:
    whole = {"splits": {"test": {"per_class": [None] * 3, "confusion_cells": [[0, 1, 5], [2, 2, 7]]}}}
    found = confusions({"evaluation": {"test": {"confusion": None}, "validation": {"confusion": None}}}, whole)
    assert list(found) == ["test"]
    np.testing.assert_array_equal(found["test"], [[0, 5, 0], [0, 0, 0], [0, 0, 7]])
    np.testing.assert_array_equal(confusions({"evaluation": {"test": {"confusion": [[1]]}}}, {})["test"], [[1]])
