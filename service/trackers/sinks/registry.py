"""Registry of the sinks. A new one is a file in this folder and an entry here; it needs an extra of its name, too."""

from service.trackers.sinks.base import Sink
from service.trackers.sinks.mlflow import MlflowSink
from service.trackers.sinks.trackio import TrackioSink
from service.trackers.sinks.wandb import WandbSink

SINKS: dict[str, type[Sink]] = {
    "mlflow": MlflowSink,
    "wandb": WandbSink,
    "trackio": TrackioSink,
}
"""Sinks by the name that addresses, commands and extras use."""
