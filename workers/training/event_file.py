"""TensorBoard event file of a run: the metrics of every epoch, as an artifact.

tensorboardX writes the records: 0.65 MB of Python over numpy and protobuf, which are here anyway; its newest release
(2.6.5) imports without a warning beside protobuf 7. ``torch.utils.tensorboard`` needs the package ``tensorboard``
itself, with grpc and a web server, in every worker. Only the record writer and the messages are used:
``SummaryWriter`` adds a thread, the time and the machine's name to each file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

# What a TensorBoard begins a file of this format with.
_FORMAT = "brain.Event:2"
_NO_METRICS = frozenset({"epoch"})


def write_event_file(path: Path, metrics: Sequence[Mapping[str, float | None]]) -> None:
    """Write an event file that TensorBoard reads: a scalar for each metric and epoch.

    It is a function of ``metrics`` alone: steps are epochs, and the time of an event is the seconds that the run has
    trained for until then. TensorBoard's relative axis then shows seconds of training, and files of the same metrics
    have the same bytes.

    Args:
        path: absolute; its name has to contain ``tfevents`` to be found by TensorBoard.
        metrics: a line of metrics.jsonl for each epoch, with ``epoch`` and ``seconds``. Values become float32; one that
            is None is left out.

    Raises:
        OSError: it cannot be written.
    """
    writer = RecordWriter(str(path))
    try:
        writer.write(Event(wall_time=0.0, file_version=_FORMAT).SerializeToString())
        trained_s = 0.0
        for line in metrics:
            trained_s += line["seconds"] or 0.0
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in line.items()
                if value is not None and name not in _NO_METRICS
            ]
            event = Event(wall_time=trained_s, step=int(line["epoch"] or 0), summary=Summary(value=values))
            writer.write(event.SerializeToString())
    finally:
        writer.close()
