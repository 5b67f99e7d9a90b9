"""Names and units of metrics, for axes."""

from dataclasses import dataclass

# The splits that a metric's name may begin with.
_PREFIXES = {"validation_": "validation", "train_": "training"}
# name -> what it is called, its unit, and the factor to that unit.
_KNOWN: dict[str, tuple[str, str, float]] = {
    "top1": ("top-1 accuracy", "%", 100.0),
    "top5": ("top-5 accuracy", "%", 100.0),
    "accuracy": ("accuracy", "%", 100.0),
    "nll": ("negative log-likelihood", "nats", 1.0),
    "ece": ("expected calibration error, 15 bins", "%", 100.0),
    "agreement": ("agreement with the teacher", "%", 100.0),
    "kl_to_teacher": ("KL(teacher || student)", "nats", 1.0),
    "kl": ("KL(teacher || student)", "nats", 1.0),
    "loss": ("loss", "nats", 1.0),
    "seconds": ("time of an epoch", "s", 1.0),
    "images_per_s": ("throughput", "pictures/s", 1.0),
    "lr": ("learning rate", "per step", 1.0),
    "learning_rate": ("learning rate", "per step", 1.0),
}
# Without a prefix these are of the test split.
_OF_TEST = frozenset({"top1", "top5", "nll", "ece", "agreement", "kl_to_teacher", "kl"})


@dataclass(frozen=True)
class Axis:
    """The label of a metric's axis, with its unit, and the factor from the metric to it."""

    label: str
    factor: float


def axis_of(metric: str) -> Axis:
    """The axis of a metric; one that is not known here has its own name and no unit."""
    # Of the average of the weights (training.ema), beside those that are trained.
    if metric.startswith(("ema_", "validation_ema_")):
        axis = axis_of(metric.replace("ema_", "", 1))
        return Axis(f"{axis.label}, averaged weights", axis.factor)
    name, split = metric, "test" if metric in _OF_TEST else ""
    for prefix, of in _PREFIXES.items():
        if metric.startswith(prefix):
            name, split = metric.removeprefix(prefix), of
    if "_temperature_" in metric:
        network, _, statistic = metric.partition("_temperature_")
        of_paper = network.endswith("_paper")
        which = "temperature, the paper's T" if of_paper else "temperature, divisor of logits"
        return Axis(f"{network.removesuffix('_paper')} {which}, {statistic} (no unit)", 1.0)
    if name not in _KNOWN:
        return Axis(metric, 1.0)
    known, unit, factor = _KNOWN[name]
    return Axis(f"{known}{f', {split}' if split else ''} ({unit})", factor)
