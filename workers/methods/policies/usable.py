"""Temperatures and weights that no loss can use: found in a batch, and explained with the expression that gave them."""

from dataclasses import dataclass
from types import ModuleType

from workers.methods.expression import Array
from workers.methods.policies.base import Temperatures
from workers.methods.policies.expression import Expression


@dataclass(frozen=True)
class Unusable:
    """A temperature or weight that no loss can use.

    Attributes:
        sample: its place in the batch.
        side: ``student``, ``teacher`` or ``weight``.
        value: what it is.
    """

    sample: int
    side: str
    value: float

    def explain(self, config: Expression, sample: str) -> str:
        """A sentence with the text that gave the value, about the sample as ``sample`` calls it."""
        what = "weight" if self.side == "weight" else f"{self.side} temperature"
        allowed = "finite and not negative" if self.side == "weight" else "positive and finite"
        parsed = config.parsed
        text = parsed[self.side].text if self.side in parsed else "T_s T_t"
        return (
            f"the {what} of {sample} is {self.value:g}, from {text!r}; it must be {allowed}: "
            "bound it, with clip(x, low, high) or where(condition, x, otherwise) for instance"
        )


def finite_if_usable(temperatures: Temperatures, xp: ModuleType) -> Array:
    """A value of no meaning, finite exactly where ``first_unusable`` finds nothing: [B, 1]; no step waits for it."""
    both_B1 = xp.log(temperatures.student)
    if temperatures.teacher is not temperatures.student:
        both_B1 = both_B1 + xp.log(temperatures.teacher)
    return both_B1 + xp.sqrt(temperatures.weight)


def first_unusable(temperatures: Temperatures, xp: ModuleType) -> Unusable | None:
    """The first sample with a temperature that is not positive and finite, or such a weight; the weight may be 0.

    Of temperatures that are arrays, all three.
    """
    sides = {
        "student": (temperatures.student, temperatures.student > 0),
        "teacher": (temperatures.teacher, temperatures.teacher > 0),
        "weight": (temperatures.weight, temperatures.weight >= 0),
    }
    usable = {side: xp.isfinite(values_B1) & positive_B1 for side, (values_B1, positive_B1) in sides.items()}
    if bool((usable["student"] & usable["teacher"] & usable["weight"]).all()):
        return None
    samples = {side: good_B1.reshape(-1).tolist() for side, good_B1 in usable.items()}
    sample, side = min((good.index(False), side) for side, good in samples.items() if False in good)
    return Unusable(sample, side, float(sides[side][0].reshape(-1)[sample]))
