"""Metrics of an epoch that are of the weights which a run leaves, by the run's documents."""

from collections.abc import Mapping

from service.client.transport import Document


def kept_prefix(result: Document) -> str:
    """Prefix of the metrics of the weights that leave, behind that of the split.

    Args:
        result: result.json; empty while the run has none, which shows the weights that are trained.
    """
    return "ema_" if result.get("weights") == "ema" else ""


def kept_top1(metrics: Mapping[str, float | None], result: Document) -> float | None:
    """Top-1 of an epoch, 0..1: on the test split, or on the validation split where that has none."""
    prefix = kept_prefix(result)
    top1 = metrics.get(f"{prefix}top1")
    return metrics.get(f"validation_{prefix}top1") if top1 is None else top1
