"""Methods that join two papers, by name, and ``custom``, which joins anything. No torch here."""

from typing import Annotated, Literal

from workers.methods.losses import Dkd, Kl, Rld
from workers.methods.method import TERMS_MAX, Epochs, Term, TermName
from workers.methods.papers import losses, multi_level, temperatures
from workers.methods.papers.base import Preset
from workers.methods.policies.learned import Learned
from workers.methods.policies.max_logit import MaxLogit
from workers.methods.policies.normkd import Normkd
from workers.methods.policies.standardize import Standardize
from workers.spec import AtMost, Count, Finite, Temperature, Weight


class NormKDDKD(Preset):
    """NormKD's temperatures in DKD's loss. The authors tune alpha and beta per pair (res32x4-res8x4: 4 and 5)."""

    title = "NormKD with DKD"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    formula = "CE + w T_t^2 (alpha KL(label against rest) + beta KL(rest among themselves)), T = k std(z)"
    imagenet = {"scale": 0.5, "beta": 1.0, "warmup_epochs": 1}

    preset: Literal["normkd_dkd"] = "normkd_dkd"
    warmup_epochs: Epochs = 20
    scale: Temperature = 2.0
    alpha: Weight = 1.0
    beta: Weight = 8.0

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Normkd(scale=self.scale), loss=Dkd(alpha=self.alpha, beta=self.beta)),)


class LSKDDKD(Preset):
    """Logit standardisation in DKD's loss; both weights are DKD's times 9."""

    title = "logit standardisation with DKD"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    formula = "CE + w T^2 (alpha KL(label against rest) + beta KL(rest among themselves)), z-scored logits"

    preset: Literal["lskd_dkd"] = "lskd_dkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 2.0
    alpha: Weight = 9.0
    beta: Weight = 72.0

    def _terms(self) -> tuple[Term, ...]:
        policy, loss = Standardize(temperature=self.temperature), Dkd(alpha=self.alpha, beta=self.beta)
        return (Term(policy=policy, loss=loss),)


class LSKDRLD(Preset):
    """Logit standardisation in RLD's loss; both weights are RLD's times 9."""

    title = "logit standardisation with RLD"
    paper = "Sun et al. ICCV 2025, arXiv 2408.07703"
    formula = "CE + w T^2 (alpha KL(teacher's top || student's label) + beta KL(classes below)), z-scored logits"

    preset: Literal["lskd_rld"] = "lskd_rld"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 2.0
    alpha: Weight = 9.0
    beta: Weight = 72.0

    def _terms(self) -> tuple[Term, ...]:
        policy, loss = Standardize(temperature=self.temperature), Rld(alpha=self.alpha, beta=self.beta)
        return (Term(policy=policy, loss=loss),)


class LSKDMLKD(Preset):
    """Logit standardisation of the divergences of the two-view multi-level KD; its matrices stay of raw logits."""

    title = "logit standardisation with multi-level KD, two views"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    formula = "mlld whose KL terms are of z-scored logits; class and batch correlations are of raw ones"
    second_view = multi_level.SECOND_VIEW

    preset: Literal["lskd_mlkd"] = "lskd_mlkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    temperature: Temperature = 2.0

    def _terms(self) -> tuple[Term, ...]:
        return multi_level.two_view_terms(self.temperature, self.kd_weight, standardized=True)


class LSKDCTKD(Preset):
    """Logit standardisation at a learned temperature. The weights are lskd's, the curriculum ctkd's."""

    title = "logit standardisation with a learned temperature"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    formula = "a CE + b T^2 KL(S(z'_t/T) || S(z'_s/T)), z' the z-scored logits, T learned as in ctkd"
    verified = "each part on its own"
    imagenet = {"ce_weight": 1.0, "reversal_epochs": 5}

    preset: Literal["lskd_ctkd"] = "lskd_ctkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    start: Temperature = 1.0
    span: Temperature = 20.0
    theta: Finite = 1.0
    strength: Weight = 1.0
    reversal_epochs: Count = 10

    def _terms(self) -> tuple[Term, ...]:
        learned = {field: getattr(self, field) for field in Learned.model_fields if field in type(self).model_fields}
        return (Term(policy=Learned(**learned, standardize=True), loss=Kl(), weight=self.kd_weight, name="lskd_ctkd"),)


class ATKDDKD(Preset):
    """The max-logit temperature in DKD's loss, with DKD's weights."""

    title = "adaptive temperature (maximum logit) with DKD"
    paper = "Matsuyama et al. 2025, arXiv 2503.09030"
    formula = "CE + w T_n^2 (alpha KL(label against rest) + beta KL(rest among themselves)), z-scored logits"

    preset: Literal["atkd_dkd"] = "atkd_dkd"
    warmup_epochs: Epochs = 20
    alpha: Weight = 1.0
    beta: Weight = 8.0
    form: Literal["released", "teacher_only"] = "released"

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=MaxLogit(form=self.form), loss=Dkd(alpha=self.alpha, beta=self.beta)),)


class Custom(Preset):
    """Any policies with any losses: ``terms`` are given outright, nothing is filled in."""

    title = "your own combination"
    paper = "none"
    formula = "ce_weight CE + w sum_i weight_i loss_i(policy_i)"
    verified = "each part on its own"

    preset: Literal["custom"] = "custom"
    name: TermName = "custom"
    terms: Annotated[tuple[Term, ...], AtMost(TERMS_MAX)] = ()

    @property
    def label(self) -> str:
        return self.name

    def _terms(self) -> tuple[Term, ...]:
        return self.terms


_MODULES = [temperatures.__name__, losses.__name__, multi_level.__name__, __name__]

PRESETS: dict[str, type[Preset]] = {
    cls.id(): cls for cls in sorted(Preset.__subclasses__(), key=lambda cls: _MODULES.index(cls.__module__))
}
"""Every preset by its id: those of ``papers`` first, module by module, then those of this one."""
