"""TensorBoard event file of a run: metrics of every epoch and histograms of its temperatures, as an artifact.

tensorboardX writes the records: 0.65 MB of Python over numpy and protobuf, which are here anyway; its newest release
(2.6.5) imports without a warning beside protobuf 7. ``torch.utils.tensorboard`` needs the package ``tensorboard``
itself, with grpc and a web server, in every worker. Only the record writer and the messages are used:
``SummaryWriter`` adds a thread, the time and the machine's name to each file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import HistogramProto, Summary
from tensorboardX.record_writer import RecordWriter

# What a TensorBoard begins a file of this format with.
_FORMAT = "brain.Event:2"
_NO_METRICS = frozenset({"epoch"})


def write_event_file(
    path: Path, metrics: Sequence[Mapping[str, float | None]], temperatures: Mapping[str, Any] | None = None
) -> None:
    """Write an event file that TensorBoard reads: a scalar for each metric and epoch, histograms of temperatures.

    It is a function of its arguments alone: steps are epochs, and the time of an event is the seconds that the run has
    trained for until then. TensorBoard's relative axis then shows seconds of training, and files of the same metrics
    have the same bytes.

    Args:
        path: absolute; its name has to contain ``tfevents`` to be found by TensorBoard.
        metrics: a line of metrics.jsonl for each epoch, with ``epoch`` and ``seconds``. Values become float32; one that
            is None is left out.
        temperatures: temperatures.json, whose histograms become ``NETWORK_temperature`` (the divisor) and
            ``NETWORK_paper_temperature``; None has none. A temperature that is the same for all samples has no
            histogram: its mean is among the metrics.

    Raises:
        OSError: it cannot be written.
    """
    writer = RecordWriter(str(path))
    try:
        writer.write(Event(wall_time=0.0, file_version=_FORMAT).SerializeToString())
        trained_s = 0.0
        by_epoch = {int(found["epoch"]): found for found in (temperatures or {}).get("epochs", ())}
        for line in metrics:
            trained_s += line["seconds"] or 0.0
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in line.items()
                if value is not None and name not in _NO_METRICS
            ]
            epoch = int(line["epoch"] or 0)
            if temperatures is not None and epoch in by_epoch:
                values.extend(_histograms(temperatures["bins"], by_epoch[epoch]))
            event = Event(wall_time=trained_s, step=epoch, summary=Summary(value=values))
            writer.write(event.SerializeToString())
    finally:
        writer.close()


def _histograms(bins: Mapping[str, int], epoch: Mapping[str, Any]) -> Iterator[Any]:
    for network in ("student", "teacher"):
        for which, name in (("divisor", "temperature"), ("paper", "paper_temperature")):
            found = epoch.get(network, {}).get(which, {})
            if found.get("counts"):
                yield Summary.Value(tag=f"{network}_{name}", histo=_histogram(bins, found))


def _histogram(bins: Mapping[str, int], found: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a message of protobuf
    """A histogram of the bins from the first that is not empty to the last; what lies beyond all bins is in these."""
    counts = list(found["counts"])
    counts[0] += found["below"]
    counts[-1] += found["above"]
    first, rows = found["first_bin"], sum(counts)
    edges = [
        2.0 ** (bins["least_exponent"] + (first + number) / bins["bins_per_octave"])
        for number in range(len(counts) + 1)
    ]
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=rows,
        sum=rows * found["mean"],
        sum_squares=rows * (found["mean"] ** 2 + found["std"] ** 2),
        bucket_limit=edges[1:],
        bucket=counts,
    )
