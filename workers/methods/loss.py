"""Base of distillation losses: the properties that each declares, and the options that all have. No torch here."""

from typing import ClassVar, Literal

from pydantic import Field

from workers.methods.cache_statistics import CacheStatistic
from workers.spec import MethodPart

Scale = Literal["tau_squared", "none"]


class Loss(MethodPart):
    """Base of distillation losses.

    Attributes:
        parts: names of the summands that the loss reports, in order.
        needs_labels: whether the true class enters the formula.
        takes_heavier_label: whether, of a mixed picture with two classes, the authors' code takes the one with the
            larger share for the true one.
        needs_batch: whether a sample's loss depends on the other samples of its batch.
        one_temperature: whether the formula is defined only for one teacher temperature per sample.
        shift_invariant: whether adding a constant to a row of logits changes nothing, as under softmax.
        reads_level: whether it compares rows with each other by where their logits lie, although it is shift invariant
            for each network as a whole.
        own_temperature: whether it sets the temperature of its divergence itself, and has no use for a learned one.
        scale: ``tau_squared`` multiplies by W, the policy's T^2 or its like; ``none`` leaves W out. The default is as
            published. W makes up for a gradient that falls as 1/T^2, as a divergence's does; that of a correlation
            does not, and so grows with W.
    """

    parts: ClassVar[tuple[str, ...]]
    needs_labels: ClassVar[bool] = False
    takes_heavier_label: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = False
    one_temperature: ClassVar[bool] = False
    shift_invariant: ClassVar[bool] = True
    reads_level: ClassVar[bool] = False
    own_temperature: ClassVar[bool] = False

    # Joined later: a default is not written, so that the digests of stored jobs stay.
    scale: Scale = Field("tau_squared", exclude_if=lambda given: given == "tau_squared")

    @property
    def cache_statistics(self) -> tuple[CacheStatistic, ...]:
        """Statistics of the whole cache that this configuration reads, see ``Logits.cache_statistics``."""
        return ()

    @property
    def active_parts(self) -> tuple[str, ...]:
        """The parts that this configuration computes and reports."""
        return self.parts
