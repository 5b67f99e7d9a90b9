"""Presets of the papers that choose temperatures, with a divergence or a distance as it was. No torch here."""

from typing import Literal

from workers.methods.losses import CrossEntropy, Kl, Mse
from workers.methods.method import Epochs, Term
from workers.methods.papers.base import Preset
from workers.methods.policies.annealed import Annealed
from workers.methods.policies.asymmetric import Asymmetric
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.learned import Learned
from workers.methods.policies.max_logit import MaxLogit
from workers.methods.policies.normkd import Normkd
from workers.methods.policies.standardize import Standardize
from workers.spec import Count, Finite, Temperature, Weight


class CE(Preset):
    """Cross-entropy alone: the student without a teacher, against which the others are judged."""

    title = "cross-entropy (no distillation)"
    paper = "none"
    formula = "CE"
    verified = "definition"

    preset: Literal["ce"] = "ce"

    def _terms(self) -> tuple[Term, ...]:
        return ()


class KD(Preset):
    """Hinton's distillation with mdistiller's weights."""

    title = "knowledge distillation"
    paper = "Hinton et al. 2015, arXiv 1503.02531"
    formula = "a CE + b T^2 KL(S(z_t/T) || S(z_s/T))"
    imagenet = {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["kd"] = "kd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Fixed(temperature=self.temperature), loss=Kl(), weight=self.kd_weight, name="kd"),)


class DTKD(Preset):
    """Dynamic temperatures beside plain KD. The authors give no ImageNet values; the same ones are used.

    ``statistic`` ``sharpness`` is the paper's definition, the logsumexp; ``max`` what its code and results use.
    """

    title = "dynamic temperature KD"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    formula = "CE + w (alpha T_t T_s KL(S(z_t/T_t) || S(z_s/T_s)) + beta T^2 KL(S(z_t/T) || S(z_s/T)))"

    preset: Literal["dtkd"] = "dtkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 3.0
    beta: Weight = 1.0
    statistic: Literal["max", "sharpness"] = "max"

    def _terms(self) -> tuple[Term, ...]:
        policy = Dtkd(temperature=self.temperature, statistic=self.statistic)
        return (
            Term(policy=policy, loss=Kl(), weight=self.alpha, name="dtkd"),
            Term(policy=Fixed(temperature=self.temperature), loss=Kl(), weight=self.beta, name="kd"),
        )


class NormKD(Preset):
    """Temperatures from the standard deviations; ``scale`` is the authors' T_norm."""

    title = "normalised-logits KD"
    paper = "Chi et al. 2023, arXiv 2308.00520"
    formula = "a CE + b T_t^2 KL(S(z_t/T_t) || S(z_s/T_s)), T = k std(z)"
    imagenet = {"scale": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}

    preset: Literal["normkd"] = "normkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    scale: Temperature = 2.0

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Normkd(scale=self.scale), loss=Kl(), weight=self.kd_weight, name="normkd"),)


class LSKD(Preset):
    """Logit standardisation before plain KD."""

    title = "logit-standardisation KD"
    paper = "Sun et al. CVPR 2024, arXiv 2403.01427"
    formula = "a CE + b T^2 KL(S(z'_t/T) || S(z'_s/T)), z' the z-scored logits"
    imagenet = {"ce_weight": 1.0}

    preset: Literal["lskd"] = "lskd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    temperature: Temperature = 2.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Standardize(temperature=self.temperature)
        return (Term(policy=policy, loss=Kl(), weight=self.kd_weight, name="lskd"),)


class ATKD(Preset):
    """Adaptive temperature from the maximum logit. The authors give no ImageNet values; the same ones are used."""

    title = "adaptive temperature KD (maximum logit)"
    paper = "Matsuyama et al. 2025, arXiv 2503.09030"
    formula = "a CE + b T_n^2 KL(S(z'_t/T_n) || S(z'_s/T_n)), T_n = (1+sqrt 3)/2 max(|z'_s|, |z'_t|)"

    preset: Literal["atkd"] = "atkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 9.0
    form: Literal["released", "teacher_only"] = "released"

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=MaxLogit(form=self.form), loss=Kl(), weight=self.kd_weight, name="atkd"),)


class TTM(Preset):
    """Transformed teacher matching: a temperature on the teacher alone, 1 / the authors' ``ttm_l`` of 0.1."""

    title = "transformed teacher matching"
    paper = "Zheng & Yang ICLR 2024, arXiv 2402.11148"
    formula = "CE + b KL(S(z_t/T) || S(z_s))"

    preset: Literal["ttm"] = "ttm"
    kd_weight: Weight = 45.0
    temperature: Temperature = 10.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Asymmetric(student=1.0, teacher=self.temperature)
        return (Term(policy=policy, loss=Kl(), weight=self.kd_weight, name="ttm"),)


class CTKD(Preset):
    """Curriculum temperature: one learned temperature that works against the student, ever more strongly."""

    title = "curriculum temperature KD"
    paper = "Li et al. AAAI 2023, arXiv 2211.16231"
    formula = "a CE + b T^2 KL(S(z_t/T) || S(z_s/T)), T = start + span sigmoid(theta), dL/dtheta reversed"
    imagenet = {"ce_weight": 1.0, "kd_weight": 1.0, "reversal_epochs": 5}

    preset: Literal["ctkd"] = "ctkd"
    ce_weight: Weight = 0.1
    kd_weight: Weight = 0.9
    start: Temperature = 1.0
    span: Temperature = 20.0
    theta: Finite = 1.0
    strength: Weight = 1.0
    reversal_epochs: Count = 10

    def _terms(self) -> tuple[Term, ...]:
        learned = {field: getattr(self, field) for field in Learned.model_fields if field in type(self).model_fields}
        return (Term(policy=Learned(**learned), loss=Kl(), weight=self.kd_weight, name="ctkd"),)


class ATS(Preset):
    """Asymmetric temperature scaling; the authors scan label temperatures 1 to 6 and others 1 to 5."""

    title = "asymmetric temperature scaling"
    paper = "Li et al. NeurIPS 2022, arXiv 2210.04427"
    formula = "a CE + b T_s^2 H(S(z_t/T_c), S(z_s/T_s)), T_c another for the label"
    verified = "own transcription of the authors' script"

    preset: Literal["ats"] = "ats"
    ce_weight: Weight = 0.5
    kd_weight: Weight = 0.5
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 3.0
    label_temperature: Temperature = 4.0

    def _terms(self) -> tuple[Term, ...]:
        policy = Asymmetric(
            student=self.student_temperature,
            teacher=self.teacher_temperature,
            label_temperature=self.label_temperature,
        )
        return (Term(policy=policy, loss=CrossEntropy(), weight=self.kd_weight, name="ats"),)


class AnnealingKD(Preset):
    """First the logits alone, the teacher's fading in over ``steps`` steps; then cross-entropy alone.

    The authors stretch the steps over their first phase: give ``epochs_per_step`` = its epochs / ``steps``.
    """

    title = "annealing KD"
    paper = "Jafari et al. 2021, arXiv 2104.07163"
    formula = "mean_c (z_s - (t/n) z_t)^2 for t = 1..n, then CE"
    verified = "own transcription of the authors' script"

    preset: Literal["annealing_kd"] = "annealing_kd"
    kd_weight: Weight = 1.0
    steps: Count = 10
    epochs_per_step: Count = 1

    def _terms(self) -> tuple[Term, ...]:
        policy = Annealed(steps=self.steps, epochs_per_step=self.epochs_per_step)
        return (Term(policy=policy, loss=Mse(), weight=self.kd_weight),)

    def _distil_epochs(self) -> int | None:
        return self.steps * self.epochs_per_step
