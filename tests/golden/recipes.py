"""Which of our methods each golden id is, and which of our terms its terms are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PAST_WARMUP = 1000
"""An epoch at which every warm-up is over."""


@dataclass(frozen=True)
class Recipe:
    """How to reproduce one id.

    Attributes:
        method: what ``parse_method`` reads.
        terms: golden term -> our unweighted term -> factor.
        epoch: counted from 1.
        rtol: allowed relative difference in float64.
    """

    method: Mapping[str, object]
    terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    epoch: int = PAST_WARMUP
    rtol: float = 1e-9


# The authors of atkd keep sqrt(3) as a float32 scalar.
SQRT3_RTOL = 2e-7

IMAGENET = {"family": "imagenet"}


def _two_parts(first: str, second: str, alpha: float, beta: float, whole: str) -> dict[str, dict[str, float]]:
    return {
        "ce_weighted": {"ce": 1.0},
        whole: {first: alpha, second: beta},
        f"{first}_unweighted": {first: 1.0},
        f"{second}_unweighted": {second: 1.0},
    }


def _dkd(alpha: float, beta: float) -> dict[str, dict[str, float]]:
    return _two_parts("tckd", "nckd", alpha, beta, "dkd_weighted")


def _rld(alpha: float, beta: float) -> dict[str, dict[str, float]]:
    return _two_parts("scd", "mcd", alpha, beta, "rld_weighted")


def _kd(name: str, ce: float, kd: float) -> dict[str, dict[str, float]]:
    return {"ce_weighted": {"ce": ce}, "kd_weighted": {name: kd}}


def _beside_ce(**terms: str) -> dict[str, dict[str, float]]:
    return {"ce_unweighted": {"ce": 1.0}, **{golden: {ours: 1.0} for golden, ours in terms.items()}}


def _nkd(gamma: float) -> dict[str, dict[str, float]]:
    return {**_beside_ce(nkd_target="nkd_target"), "nkd_nontarget_weighted": {"nkd_nontarget": gamma}}


def _two_views(ce: float, kd: float) -> dict[str, dict[str, float]]:
    divergences = ("mlkd1", "mlkd2", "mlkd3", "mlkd4", "mlkd5", "second1", "second2", "second3", "again4", "again5")
    return {
        "loss_ce": {"ce": ce},
        "loss_kd": {f"{term}_kd": kd for term in divergences},
        "loss_cc": {f"mlkd{number}_cc": kd for number in range(1, 6)},
        "loss_bc": {f"mlkd{number}_bc": kd for number in range(1, 6)},
    }


DTKD_TERMS = {
    "dtkd_unweighted": {"dtkd": 1.0},
    "kl_unweighted": {"kd": 1.0},
    "ce_unweighted": {"ce": 1.0},
}

RECIPES: dict[str, Recipe] = {
    "kd": Recipe({"preset": "kd"}, _kd("kd", 0.1, 0.9)),
    "kd_imagenet": Recipe({"preset": "kd", **IMAGENET}, _kd("kd", 0.5, 0.5)),
    "dtkd": Recipe({"preset": "dtkd"}, DTKD_TERMS),
    "dtkd_epoch5": Recipe({"preset": "dtkd"}, DTKD_TERMS, epoch=5),
    "normkd": Recipe({"preset": "normkd"}, _kd("normkd", 0.1, 0.9)),
    "normkd_imagenet": Recipe({"preset": "normkd", **IMAGENET}, _kd("normkd", 0.5, 0.5)),
    "normkd_dkd": Recipe({"preset": "normkd_dkd", "alpha": 4, "beta": 5}, _dkd(4.0, 5.0)),
    "rld": Recipe({"preset": "rld"}, _rld(1.0, 8.0)),
    "rld_cfgdefault": Recipe({"preset": "rld", "binary_temperature": 1}, _rld(1.0, 8.0)),
    "rld_imagenet": Recipe({"preset": "rld", **IMAGENET}, _rld(1.0, 0.5)),
    "rld_lskd": Recipe({"preset": "lskd_rld"}, _rld(9.0, 72.0)),
    "atkd_maxlogit": Recipe(
        {"preset": "atkd"}, {"ce_unweighted": {"ce": 1.0}, "kd_unweighted": {"atkd": 1.0}}, rtol=SQRT3_RTOL
    ),
    "atkd_maxlogit_dkd": Recipe(
        {"preset": "atkd_dkd"},
        {"ce_unweighted": {"ce": 1.0}, "dkd_sum": {"tckd": 1.0, "nckd": 8.0}},
        rtol=SQRT3_RTOL,
    ),
    "lskd": Recipe({"preset": "lskd"}, _kd("lskd", 0.1, 9.0)),
    "lskd_imagenet": Recipe({"preset": "lskd", **IMAGENET}, _kd("lskd", 1.0, 9.0)),
    "lskd_dkd": Recipe({"preset": "lskd_dkd"}, _dkd(9.0, 72.0)),
    "lskd_mlkd": Recipe({"preset": "lskd_mlkd"}, _two_views(0.1, 9.0)),
    "dkd": Recipe({"preset": "dkd"}, _dkd(1.0, 8.0)),
    "dkd_epoch5": Recipe({"preset": "dkd"}, _dkd(0.25, 2.0), epoch=5),
    "dkd_imagenet": Recipe({"preset": "dkd", **IMAGENET}, _dkd(1.0, 0.5)),
    "nkd_imagenet": Recipe({"preset": "nkd", **IMAGENET}, _nkd(1.5)),
    "nkd_cifar": Recipe({"preset": "nkd"}, _nkd(3.5)),
    "wsld_imagenet": Recipe({"preset": "wsld", **IMAGENET}, _beside_ce(soft_unweighted="wsld")),
    "wsld_cifar": Recipe({"preset": "wsld"}, _beside_ce(soft_unweighted="wsld")),
    "dist_cifar": Recipe({"preset": "dist"}, _beside_ce(inter_tau2="dist_inter", intra_tau2="dist_intra")),
    "dist_imagenet": Recipe(
        {"preset": "dist", **IMAGENET}, _beside_ce(inter_tau2="dist_inter", intra_tau2="dist_intra")
    ),
    "ttm": Recipe({"preset": "ttm"}, _beside_ce(kd_unweighted="ttm")),
    "wttm": Recipe({"preset": "wttm"}, _beside_ce(kd_unweighted="wttm")),
    "bild": Recipe(
        {"preset": "bild"}, {"teacher_led": {"bild_teacher_led": 1.0}, "student_led": {"bild_student_led": 1.0}}
    ),
    "ctkd_epoch10": Recipe({"preset": "ctkd"}, _beside_ce(kd_unweighted="ctkd"), epoch=10),
    "ctkd_epoch3": Recipe({"preset": "ctkd"}, _beside_ce(kd_unweighted="ctkd"), epoch=3),
    "mlld": Recipe({"preset": "mlld"}, _two_views(0.1, 0.9)),
    "mlkd_noaug": Recipe(
        {"preset": "mlkd"},
        {
            "loss_ce": {"ce": 0.1},
            **{f"loss_{part}": {f"mlkd{number}_{part}": 0.9 for number in range(1, 6)} for part in ("kd", "cc", "bc")},
        },
    ),
    "ats": Recipe({"preset": "ats"}, _beside_ce(kd_unweighted="ats")),
    "annealing_kd_T5": Recipe({"preset": "annealing_kd"}, {"mse": {"mse": 1.0}}, epoch=5),
}

NOT_TARGETS: dict[str, str] = {
    "lud_transcription": "a reading by hand with hard ranks, values without gradient; the preset lud is another one",
}
"""Ids that no method of ours means to reproduce, with the reason."""
