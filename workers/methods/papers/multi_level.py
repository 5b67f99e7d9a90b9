"""Presets of multi-level KD, which takes many terms: samples, classes and the batch. No torch here."""

from typing import Annotated, Literal

from workers.methods.loss import Loss
from workers.methods.losses import Kl, Mlkd
from workers.methods.method import Term
from workers.methods.papers.base import Preset
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.standardize import Standardize
from workers.spec import AtMost, Temperature, Weight


class MLKD(Preset):
    """Multi-level KD on one view, at the base temperature and four more; ``mlld`` is the method of two views."""

    title = "multi-level KD, one view"
    paper = "Jin et al. CVPR 2023; MLKD_NOAUG in the repository of arXiv 2408.07703"
    formula = "a CE + b sum_T (f_s T^2 KL + f_c class correlation + f_s batch correlation)"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["mlkd"] = "mlkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0
    more_temperatures: Annotated[tuple[Temperature, ...], AtMost(8)] = (3.0, 5.0, 2.0, 6.0)

    def _terms(self) -> tuple[Term, ...]:
        return tuple(
            Term(policy=Fixed(temperature=temperature), loss=Mlkd(), weight=self.kd_weight, name=f"mlkd{number}")
            for number, temperature in enumerate((self.temperature, *self.more_temperatures), start=1)
        )


# Of both methods of two views.
SECOND_VIEW = {"rand_augment": {"num_ops": 2, "magnitude": 10}}


class MLLD(Preset):
    """Multi-level KD as released, on two views of each sample.

    The second view is the cache's next one; with the authors' ``second_view`` that is one with RandAugment, cropped and
    mirrored on its own. Of the second, the released code computes the divergence at three temperatures only; the other
    two are of the first view once more.
    """

    title = "multi-level KD, two views"
    paper = "Jin et al. CVPR 2023"
    formula = "a (CE + CE_2) + b (mlkd at 5 temperatures + T^2 KL_2 at T, 3, 5 + T^2 KL at 2, 6)"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}
    second_view = SECOND_VIEW

    preset: Literal["mlld"] = "mlld"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        return two_view_terms(self.temperature, self.kd_weight, standardized=False)


def two_view_terms(temperature: float, weight: float, *, standardized: bool) -> tuple[Term, ...]:
    """The 10 (``standardized``: 15) terms of the two-view method; only its divergences are ever of z-scores."""
    terms: list[Term] = []

    def divergence(loss: Loss, tau: float, name: str, view: Literal[1, 2] = 1) -> None:
        policy = Standardize(temperature=tau) if standardized else Fixed(temperature=tau)
        terms.append(Term(policy=policy, loss=loss, weight=weight, name=name, view=view))

    for number, tau in enumerate((temperature, 3.0, 5.0, 2.0, 6.0), start=1):
        if standardized:
            divergence(Mlkd(cc=0.0, bc=0.0), tau, f"mlkd{number}_kd")
            matrices = Mlkd(kd=0.0)
            terms.append(Term(policy=Fixed(temperature=tau), loss=matrices, weight=weight, name=f"mlkd{number}"))
        else:
            divergence(Mlkd(), tau, f"mlkd{number}")
    for number, tau in enumerate((temperature, 3.0, 5.0), start=1):
        divergence(Kl(), tau, f"second{number}_kd", view=2)
    for number, tau in enumerate((2.0, 6.0), start=4):
        divergence(Kl(), tau, f"again{number}_kd")
    return tuple(terms)
