"""Event file of a run: what TensorBoard reads there, with the checksums of its records."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.support.digits import Digits
from workers.events import ignore, never
from workers.methods.temperature_bins import CELLS, TemperatureDistribution
from workers.run_files import EVENT_FILE
from workers.training.artifacts.event_file import write_event_file
from workers.training.loop import train_run
from workers.training.metrics.temperatures import NetworkTemperatures, document, epoch_document

METRICS = [
    {"epoch": 1, "seconds": 2.0, "top1": 0.5, "agreement": None, "student_temperature_mean": 4.0},
    {"epoch": 2, "seconds": 3.0, "top1": 0.75, "agreement": 0.25, "student_temperature_mean": 4.5},
]


def records(content: bytes) -> Iterator[bytes]:
    """The payloads of a TFRecord file, whose lengths and checksums are as the format has them."""

    def masked(data: bytes) -> int:
        crc = google_crc32c.value(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    while content:
        length, of_length = struct.unpack_from("<QI", content)
        assert of_length == masked(content[:8])
        payload = content[12 : 12 + length]
        assert struct.unpack_from("<I", content, 12 + length) == (masked(payload),)
        yield payload
        content = content[16 + length :]


def scalars(path: Path) -> list[tuple[int, float, dict[str, float]]]:
    """(step, time in seconds, value by tag) of each event after the first, which names the format."""
    head, *events = [Event.FromString(record) for record in records(path.read_bytes())]
    assert (head.file_version, head.wall_time) == ("brain.Event:2", 0.0)
    return [
        (
            e.step,
            e.wall_time,
            {v.tag: v.simple_value for v in e.summary.value if v.WhichOneof("value") == "simple_value"},
        )
        for e in events
    ]


def histograms(path: Path) -> dict[tuple[int, str], Any]:
    """The histograms by step and tag."""
    _, *events = [Event.FromString(record) for record in records(path.read_bytes())]
    return {(e.step, v.tag): v.histo for e in events for v in e.summary.value if v.WhichOneof("value") == "histo"}


def test_event_file_has_every_metric_of_every_epoch(tmp_path: Path) -> None:
    write_event_file(tmp_path / EVENT_FILE, METRICS)
    assert scalars(tmp_path / EVENT_FILE) == [
        (1, 2.0, {"seconds": 2.0, "top1": 0.5, "student_temperature_mean": 4.0}),
        (2, 5.0, {"seconds": 3.0, "top1": 0.75, "agreement": 0.25, "student_temperature_mean": 4.5}),
    ]


def test_event_file_is_a_function_of_the_metrics(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_event_file(tmp_path / name, METRICS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_event_file_has_histograms_of_temperatures_that_vary(tmp_path: Path) -> None:
    constant, varying = (
        TemperatureDistribution(4.0, 0.0),
        TemperatureDistribution(3.0, 1.0, np.bincount([177, 177, 178], minlength=CELLS)),
    )
    epochs = [epoch_document(2, {"student": NetworkTemperatures(varying, constant)})]
    write_event_file(tmp_path / EVENT_FILE, METRICS, document(epochs))
    [(key, histogram)] = histograms(tmp_path / EVENT_FILE).items()
    assert key == (2, "student_temperature")
    assert list(histogram.bucket) == [2, 1]
    # Cell 177 is bin 176, which begins at 2^(-10 + 176/16) = 2.
    assert (histogram.min, histogram.num, histogram.sum) == (2.0, 3.0, 9.0)
    assert list(histogram.bucket_limit) == pytest.approx([2 ** (17 / 16), 2 ** (18 / 16)])
    assert len(scalars(tmp_path / EVENT_FILE)) == 2


@pytest.mark.usefixtures("without_onnx")
def test_event_file_is_among_the_artifacts_of_a_run(digits: Digits, tmp_path: Path) -> None:
    result = train_run(digits.order("kd", tmp_path), ignore, never)
    step, _, last = scalars(tmp_path / "artifacts" / EVENT_FILE)[-1]
    assert step == result["last"]["epoch"]
    expected = {name: value for name, value in result["last"].items() if value is not None and name != "epoch"}
    assert last == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("without_onnx")
def test_event_file_that_cannot_be_written_leaves_no_artifacts(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any other of the artifacts: they come in one rename."""

    def fail(*_: object) -> None:
        raise OSError(5, "no such luck")

    monkeypatch.setattr("workers.training.result.write_event_file", fail)
    with pytest.raises(OSError, match="no such luck"):
        train_run(digits.order("kd", tmp_path), ignore, never)
    assert not list(tmp_path.glob("artifacts*"))
