"""Statistics over a teacher's whole training cache, which a policy or a loss may ask for. Standard library only.

A policy or loss names what it reads in its ``cache_statistics``. The values are computed once, from the cache, before
the first step; they are constant over training and kept in the run's config.json. They are of all rows of the cache:
every view of every sample of the training split's cache, rows that are held out for validation included: no label is
read.

| name | shape | value |
|---|---|---|
| ``max_mean``, and likewise ``min``, ``mean``, ``std``, ``sharpness`` | [] | mean of the statistic over all rows |
| ``sample_max``, and likewise | [N] | mean of the statistic over the sample's views |
| ``class_confidence`` | [C] | mean of max_c S(z_t/T) over the rows that the teacher assigns to the class, or 0 |
| ``confident_classes`` | [K] | int64, the classes whose ``class_confidence`` is the median or more |

``cache_values.py`` computes them. Shapes: N samples, C classes, K of them.
"""

from dataclasses import dataclass

ROW_STATISTICS = ("max", "min", "sharpness", "std", "mean")
"""What the cache holds of each teacher row."""
MEANS = tuple(f"{name}_mean" for name in ROW_STATISTICS)
SAMPLES = tuple(f"sample_{name}" for name in ROW_STATISTICS)
CONFIDENCE, CONFIDENT = "class_confidence", "confident_classes"


@dataclass(frozen=True, order=True)
class CacheStatistic:
    """A statistic over a cache, by its name in the table above.

    Attributes:
        temperature: T of those that read probabilities.
    """

    name: str
    temperature: float = 1.0

    def __post_init__(self) -> None:
        known = (*MEANS, *SAMPLES, CONFIDENCE, CONFIDENT)
        if self.name not in known:
            raise ValueError(f"cache statistic {self.name!r} is not known; there are {', '.join(known)}")

    def __str__(self) -> str:
        return f"{self.name}(temperature={self.temperature:g})" if self.reads_logits else self.name

    @property
    def reads_logits(self) -> bool:
        """Whether it takes the logits, and not the cached statistics of the rows alone."""
        return self.name in (CONFIDENCE, CONFIDENT)

    @property
    def is_per_sample(self) -> bool:
        """Whether it is one value for each sample of the split."""
        return self.name in SAMPLES
