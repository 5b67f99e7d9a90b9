"""Mixing of views: mixup and CutMix, the last thing that is done to a view."""

from typing import Annotated

from pydantic import Field

from workers.spec import Spec

Probability = Annotated[float, Field(strict=True, gt=0.0, le=1.0, allow_inf_nan=False)]
# The share of a view's own picture is drawn from Beta(alpha, alpha).
Alpha = Annotated[float, Field(strict=True, ge=0.01, le=32.0, allow_inf_nan=False)]


class Mixup(Spec):
    """mixup (Zhang et al. 2018, arXiv:1710.09412): share x the view + (1 - share) x a view of another sample.

    Attributes:
        alpha: the share is drawn from Beta(alpha, alpha).
        probability: that a view is mixed.
    """

    alpha: Alpha = 0.2
    probability: Probability = 1.0


class CutMix(Spec):
    """CutMix (Yun et al. 2019, arXiv:1905.04899): a box of the view is that of a view of another sample.

    Attributes:
        alpha: the share of the view outside the box is drawn from Beta(alpha, alpha); a box that reaches over the
            border is cut there, which leaves more of the view.
        probability: that a view is mixed.
    """

    alpha: Alpha = 1.0
    probability: Probability = 1.0
