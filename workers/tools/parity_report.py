"""Report of a parity check: differences in loss, gradient and logits over the steps, and the verdict on them.

Shapes: B batch, C classes.
"""

from dataclasses import dataclass

from torch import Tensor

BOUND = 1e-6
"""Allowed of a step's |difference| / |live|, for the loss and for the gradient. Float32 resolves 6e-8."""

KERNEL_NOISE = 1e-5
"""Logits that differ by less than this part of the largest one come of float32 sums in another order."""


@dataclass(frozen=True)
class Spread:
    """Spread of a quantity over the steps: its median, and its value farthest from agreement."""

    median: float
    worst: float


@dataclass(frozen=True)
class ParityComparison:
    """Comparison of the cache with a live teacher, over the steps.

    Attributes:
        loss: |L_cached - L_live| / |L_live|.
        gradient: ||g_cached - g_live|| / ||g_live||, over everything that is trained.
        cosine: of the angle between both gradients.
    """

    loss: Spread
    gradient: Spread
    cosine: Spread

    @property
    def agrees(self) -> bool:
        """Whether no step exceeds ``BOUND``."""
        return self.loss.worst <= BOUND and self.gradient.worst <= BOUND


@dataclass
class LogitDifferences:
    """Differences of the cached logits from the live ones, added up batch after batch.

    Attributes:
        compared: how many.
        unlike: how many of them are not, to the last bit, the live logit in the cache's dtype.
        difference: the largest |cached - live|.
        unexplained: the largest part of it that rounding to the cache's dtype does not explain.
        largest: the largest |live|.
    """

    compared: int = 0
    unlike: int = 0
    difference: float = 0.0
    unexplained: float = 0.0
    largest: float = 0.0

    def add(self, cached_BC: Tensor, live_BC: Tensor) -> None:
        expected_BC = live_BC.to(cached_BC.dtype)
        difference_BC = (cached_BC.float() - live_BC).abs()
        rounding_BC = (expected_BC.float() - live_BC).abs()
        self.compared += cached_BC.numel()
        self.unlike += int((cached_BC != expected_BC).sum())
        self.difference = max(self.difference, float(difference_BC.max()))
        self.unexplained = max(self.unexplained, float((difference_BC - rounding_BC).max()))
        self.largest = max(self.largest, float(live_BC.abs().max()))


@dataclass(frozen=True)
class ParityReport:
    """Report of a parity check.

    Attributes:
        key: of the cache.
        method: its label.
        epoch: counted from 1.
        rows: that were trained on; a row of two views counts once.
        loss: mean over them, on the cache: what training reports as ``train_loss``.
        dtype: of the cache.
        provider: ONNX Runtime's name of what the live teacher ran on.
        live: the cache beside the live teacher's float32 logits.
        rounded: beside those logits in float16; None for a float32 cache, for it would repeat ``live``.
    """

    key: str
    student: str
    method: str
    epoch: int
    steps: int
    rows: int
    loss: float
    dtype: str
    provider: str
    live: ParityComparison
    rounded: ParityComparison | None
    logits: LogitDifferences

    @property
    def judged(self) -> ParityComparison:
        """Comparison that has to stay within ``BOUND``."""
        return self.rounded or self.live

    @property
    def ok(self) -> bool:
        return self.judged.agrees

    @property
    def verdict(self) -> str:
        """Verdict in one sentence for a person."""
        against = "the live teacher" if self.rounded is None else "the live teacher rounded to float16"
        apart = (
            f"relative differences up to {self.judged.loss.worst:.2g} in the loss and "
            f"{self.judged.gradient.worst:.2g} in the gradient ({BOUND:g} is allowed)"
        )
        if self.ok:
            return f"this cache trains a student as {against} does: {apart}"
        logits = self.logits
        if not logits.unlike:
            cause = "the logits are this teacher's, the statistics are not"
        elif logits.unexplained <= KERNEL_NOISE * logits.largest:
            cause = (
                f"{logits.unlike:,} of {logits.compared:,} logits differ in their last bits alone, as when they were "
                f"inferred by another provider than {self.provider} or on another processor"
            )
        else:
            cause = (
                f"{logits.unlike:,} of {logits.compared:,} logits are not this teacher's for these pictures, "
                f"by up to {logits.difference:.3g}"
            )
        return f"this cache does not train a student as {against} does: {apart}; {cause}"
