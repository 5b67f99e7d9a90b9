"""The papers' methods as presets, what a client may ask for, and their documentation. No torch here.

A preset is a frozen pydantic class whose defaults are the authors' for CIFAR; ``family: imagenet`` swaps in their
ImageNet values, and every field can be overridden. ``expand()`` turns it into a ``Method`` (``composition.py``),
which is all that ``objective.py`` knows. Where the released code and the paper differ, the code is followed.

To add a method:

1. its mathematics, one function: a policy in ``temperature.py`` or a loss in ``losses.py``;
2. one entry in the dict literal under those functions (``POLICIES`` or ``LOSSES``);
3. one config class in ``composition.py``, named in its union. From here on it can be posted inside ``custom``;
4. if a paper gave it a name, one preset class here, named in ``PresetUnion``; ``tests/golden`` proves it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from workers.composition import (
    LOSS_CLASSES,
    POLICY_CLASSES,
    Config,
    Dkd,
    Dtkd,
    Epochs,
    Fixed,
    Fraction,
    Kl,
    Loss,
    Lud,
    MaxLogit,
    Method,
    Normkd,
    Policy,
    Rld,
    Standardize,
    Temperature,
    Term,
    TermName,
    Weight,
)
from workers.errors import InvalidMethod, UnknownName

Family = Literal["cifar", "imagenet"]


class Preset(Config):
    """Base of the presets; the class attributes are what ``describe`` and the README's table tell.

    Attributes:
        imagenet: the defaults that differ for ``family: imagenet``; empty where the authors give none.
        verified: against what the numbers were checked.
        family: which of the authors' two sets of defaults fills the fields that are not given.
        ce_weight: weight of the cross-entropy.
        warmup_epochs: epochs over which the distillation terms rise linearly; the cross-entropy does not.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    verified: ClassVar[str] = "authors' code"
    imagenet: ClassVar[Mapping[str, float | None]] = {}

    family: Family = "cifar"
    ce_weight: Weight = 1.0
    warmup_epochs: Epochs = 0

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("family") == "imagenet":
            return {**cls.imagenet, **data}
        return data

    @model_validator(mode="after")
    def _expands(self) -> Self:
        self._method(self.id())
        return self

    @classmethod
    def id(cls) -> str:
        """The name that a client writes."""
        return str(cls.model_fields["preset"].default)

    @property
    def label(self) -> str:
        """The name and the fields that differ from the family's defaults, e.g. ``kd(temperature=2)``."""
        usual = type(self)(family=self.family)
        changed = [
            f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"
            for field, value in self
            if value != getattr(usual, field) or (field == "family" and value == "imagenet")
        ]
        return f"{self.id()}({', '.join(changed)})" if changed else self.id()

    def expand(self) -> Method:
        """The method with every number in place."""
        return self._method(self.label)

    def _method(self, name: str) -> Method:
        return Method(name=name, ce_weight=self.ce_weight, terms=self._terms(), warmup_epochs=self.warmup_epochs)

    def _terms(self) -> tuple[Term, ...]:
        raise NotImplementedError


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
    """Dynamic temperatures beside plain KD. The authors give no ImageNet values; the same ones are used."""

    title = "dynamic temperature KD"
    paper = "Wei & Bai 2024, arXiv 2404.12711"
    formula = "CE + w (alpha T_t T_s KL(S(z_t/T_t) || S(z_s/T_s)) + beta T^2 KL(S(z_t/T) || S(z_s/T)))"

    preset: Literal["dtkd"] = "dtkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 3.0
    beta: Weight = 1.0

    def _terms(self) -> tuple[Term, ...]:
        return (
            Term(policy=Dtkd(temperature=self.temperature), loss=Kl(), weight=self.alpha, name="dtkd"),
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


class DKD(Preset):
    """Decoupled KD. beta is 2 to 6 for some CIFAR pairs (res56-res20: 2) and 2 for ImageNet's r50-mv1."""

    title = "decoupled KD"
    paper = "Zhao et al. CVPR 2022, arXiv 2203.08679"
    formula = "CE + w T^2 (alpha KL(label against rest) + beta KL(rest among themselves))"
    imagenet = {"temperature": 1.0, "beta": 0.5, "warmup_epochs": 1}

    preset: Literal["dkd"] = "dkd"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 1.0
    beta: Weight = 8.0

    def _terms(self) -> tuple[Term, ...]:
        loss = Dkd(alpha=self.alpha, beta=self.beta)
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss),)


class RLD(Preset):
    """Refined logit distillation. The CIFAR default is the README command's ``--same-t`` (binary temperature None)."""

    title = "refined logit distillation"
    paper = "Sun et al. ICCV 2025, arXiv 2408.07703"
    formula = "CE + w T^2 (alpha KL(teacher's top || student's label) + beta KL(classes ranked below the label))"
    imagenet = {"temperature": 1.0, "binary_temperature": 1.0, "beta": 0.5, "warmup_epochs": 1}

    preset: Literal["rld"] = "rld"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    alpha: Weight = 1.0
    beta: Weight = 8.0
    binary_temperature: Temperature | None = None

    def _terms(self) -> tuple[Term, ...]:
        loss = Rld(alpha=self.alpha, beta=self.beta, binary_temperature=self.binary_temperature)
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss),)


class LUD(Preset):
    """Logits uncertainty distillation: a reading of the abstract, not verified against the authors' code."""

    title = "logits uncertainty distillation"
    paper = "Guo et al. 2024, Sci. Rep. 14:31249"
    formula = "CE + w (beta T_n^2 generalised KL with class weights + rank correlations over classes and samples)"
    verified = "a reading of the abstract, not verified against the authors' code"

    preset: Literal["lud"] = "lud"
    warmup_epochs: Epochs = 20
    temperature: Temperature = 4.0
    temperature_min: Temperature = 2.0
    temperature_max: Temperature = 6.0
    discount: Fraction = 0.5
    beta: Weight = 1.0
    class_weight: Weight = 1.0
    sample_weight: Weight = 1.0

    def _terms(self) -> tuple[Term, ...]:
        loss = Lud(**{field: getattr(self, field) for field in Lud.model_fields if field in type(self).model_fields})
        return (Term(policy=Fixed(temperature=self.temperature), loss=loss, name="lud"),)


class Custom(Preset):
    """Any policies with any losses: ``terms`` are given outright, nothing is filled in."""

    title = "your own combination"
    paper = "none"
    formula = "ce_weight CE + w sum_i weight_i loss_i(policy_i)"
    verified = "each part on its own"

    preset: Literal["custom"] = "custom"
    name: TermName = "custom"
    terms: Annotated[tuple[Term, ...], Field(max_length=32)] = ()

    @property
    def label(self) -> str:
        return self.name

    def _terms(self) -> tuple[Term, ...]:
        return self.terms


PresetUnion = CE | KD | DTKD | NormKD | LSKD | ATKD | DKD | RLD | LUD | Custom
PRESETS: dict[str, type[Preset]] = {cls.id(): cls for cls in get_args(PresetUnion)}


# ----------------------------------------------------------------------------------------------------------- parsing


def parse_method(value: object) -> Preset:
    """A method as a client writes it.

    Args:
        value: ``"kd"``, ``{"preset": "kd", "temperature": 2}``, or a preset already made.

    Raises:
        UnknownName: no such preset, parameter, policy or loss; the message gives the nearest.
        InvalidMethod: a value outside its domain, named with what is allowed.
    """
    if isinstance(value, Preset):
        return value
    data = {"preset": value} if isinstance(value, str) else value
    if not isinstance(data, Mapping) or not isinstance(data.get("preset"), str):
        raise InvalidMethod(
            f'a method is a name or an object with "preset", such as "kd" or {{"preset": "kd", "temperature": 2}}; '
            f"got {value!r:.200}"
        )
    if data["preset"] not in PRESETS:
        raise UnknownName("method", data["preset"], PRESETS)
    try:
        return PRESETS[data["preset"]].model_validate(data)
    except ValidationError as error:
        raise InvalidMethod(_explain(data["preset"], error)) from error


def _explain(name: str, error: ValidationError) -> str:
    """One sentence per mistake, at most three: where, what was given, what is allowed."""
    sentences = []
    for item in error.errors(include_url=False)[:3]:
        where = ".".join(str(step) for step in item["loc"])
        allowed = item["msg"].removeprefix("Value error, ")
        sentences.append(f"{where} is {item['input']!r:.80}: {allowed}" if where else allowed)
    return f"method {name!r}: " + "; ".join(sentences)


MethodChoice = Annotated[
    PresetUnion,
    Field(discriminator="preset"),
    BeforeValidator(parse_method, json_schema_input_type=PresetUnion | Literal[tuple(PRESETS)]),
]
"""The type of a method field in a larger model; reads what ``parse_method`` reads."""


# ----------------------------------------------------------------------------------------------------- documentation


def describe() -> list[dict[str, Any]]:
    """Every preset for ``GET /v1/methods``: formula, paper, defaults per family, needs, JSON Schema."""
    return [_describe_preset(cls) for cls in PRESETS.values()]


def _describe_preset(cls: type[Preset]) -> dict[str, Any]:
    families: dict[Family, Preset] = {family: cls(family=family) for family in get_args(Family)}
    method = families["cifar"].expand()
    return {
        "id": cls.id(),
        "title": cls.title,
        "paper": cls.paper,
        "formula": cls.formula,
        "verified": cls.verified,
        "defaults": {
            family: preset.model_dump(mode="json", exclude={"preset", "family"}) for family, preset in families.items()
        },
        "needs": {
            "teacher": method.needs_teacher,
            "labels": method.needs_labels,
            "statistics": list(method.statistics),
        },
        "json_schema": cls.model_json_schema(),
    }


def describe_policies() -> list[dict[str, Any]]:
    """Every temperature policy that a ``custom`` method can use, with the cached statistics it reads."""
    return [{**_describe_part(cls), "statistics": list(cls.statistics)} for cls in POLICY_CLASSES]


def describe_losses() -> list[dict[str, Any]]:
    """Every loss that a ``custom`` method can use, with the parts it reports."""
    return [
        {
            **_describe_part(cls),
            "parts": list(cls.parts),
            "needs_labels": cls.needs_labels,
            "needs_batch": cls.needs_batch,
        }
        for cls in LOSS_CLASSES
    ]


def _describe_part(cls: type[Policy] | type[Loss]) -> dict[str, Any]:
    return {
        "kind": cls.model_fields["kind"].default,
        "title": cls.title,
        "formula": cls.formula,
        "paper": cls.paper,
        "defaults": cls().model_dump(mode="json", exclude={"kind"}),
        "json_schema": cls.model_json_schema(),
    }


def methods_table() -> str:
    """The presets as a markdown table, for the README."""
    lines = ["| method | what it is | loss | CIFAR defaults | paper | checked against |", "|---|---|---|---|---|---|"]
    for entry in describe():
        defaults = ", ".join(
            f"{name} {value:g}"
            for name, value in entry["defaults"]["cifar"].items()
            if isinstance(value, int | float) and value
        )
        cells = (f"`{entry['id']}`", entry["title"], entry["formula"], defaults, entry["paper"], entry["verified"])
        # A bar inside a cell would end it.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
