"""Method: terms that pair a temperature policy with a distillation loss. No torch here.

A **policy** turns statistics of the two logit rows into temperatures, a **loss** compares the two tempered rows
(``policies`` and ``losses.py`` configure them), a **term** is one policy with one loss and a weight, a **method** is
cross-entropy plus terms. Any policy goes with any loss for which it is defined; another pair is refused with the
reason. The papers' own combinations are in ``papers`` and ``combined.py``.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workers.errors import InvalidMethod, UnknownName
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.loss import Loss
from workers.methods.losses import LOSS_CLASSES, Kl
from workers.methods.policies.base import Policy
from workers.methods.policies.catalog import POLICY_CLASSES
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.learned import Learned
from workers.spec import AtMost, Config, Count, MethodPart, Weight

Epochs = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
TERMS_MAX = 32
TermName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


def _known_kind(noun: str, known: Mapping[str, type[MethodPart]]) -> BeforeValidator:
    """Accept a bare name for a mapping with only a ``kind``; refuse an unknown one with the nearest."""

    def check(value: object) -> object:
        value = {"kind": value} if isinstance(value, str) else value
        if isinstance(value, Mapping):
            if "kind" not in value:
                raise InvalidMethod(f'a {noun} needs "kind", one of {", ".join(known)}; got {dict(value)!r:.80}')
            if not isinstance(value["kind"], str) or value["kind"] not in known:
                raise UnknownName(noun, str(value["kind"]), known)
        return value

    names = Literal[tuple(known)]  # type: ignore[valid-type]  # known when this module is loaded, and not before
    return BeforeValidator(check, json_schema_input_type=reduce(or_, (*known.values(), names)))


if TYPE_CHECKING:
    PolicyConfig = Policy
    LossConfig = Loss
else:
    # Unions of every class there is, so that a new one is written down once.
    PolicyConfig = Annotated[
        reduce(or_, POLICY_CLASSES.values()),
        Field(discriminator="kind"),
        _known_kind("temperature policy", POLICY_CLASSES),
    ]
    LossConfig = Annotated[
        reduce(or_, LOSS_CLASSES.values()), Field(discriminator="kind"), _known_kind("loss", LOSS_CLASSES)
    ]


class Term(Config):
    """One summand of a method: ``weight`` x loss at the policy's temperatures.

    Attributes:
        name: what metrics call it; None takes the names of the loss's parts.
        view: which of a step's two views of each sample it compares; 2 makes the method train on both.
    """

    policy: PolicyConfig = Fixed()
    loss: LossConfig = Kl()
    weight: Weight = 1.0
    name: TermName | None = None
    view: Annotated[int, Field(strict=True, ge=1, le=2)] = 1

    @model_validator(mode="after")
    def _defined(self) -> Self:
        policy, loss = self.policy, self.loss
        if loss.one_temperature and policy.gives_label_its_own:
            reason = (
                "takes a power of the teacher's probabilities, which needs one temperature per sample, and the policy "
                "gives the label its own: set its label_temperature to null"
            )
        elif policy.z_scores and not loss.shift_invariant:
            reason = (
                "compares the logits themselves, and the policy's z-scores are temperatures only where a shift of the "
                "logits changes nothing, as under softmax: take a policy that scales raw logits"
            )
        elif isinstance(policy, Learned) and loss.own_temperature:
            reason = (
                "sets the temperature of its divergence itself, so that nothing would teach the policy's: "
                "take a policy that is not learned"
            )
        else:
            return self
        raise InvalidMethod(f"loss {loss.kind!r} is not defined with policy {policy.kind!r}: it {reason}")

    @property
    def reads_level(self) -> str | None:
        """Part that depends on where the teacher's logits lie, as a subject; None if a shift of a row changes nothing.

        A label with a temperature of its own counts: what it has of its class's logit depends on the others' level.
        """
        if self.policy.reads_level or self.policy.gives_label_its_own:
            return f"policy {self.policy.kind!r}"
        reads_level = self.loss.reads_level or not self.loss.shift_invariant
        return f"loss {self.loss.kind!r}" if reads_level else None

    @property
    def reads_label(self) -> str | None:
        """Part that needs the sample's label, as a subject; None if the term is defined without one."""
        if self.loss.needs_labels:
            return f"loss {self.loss.kind!r}"
        return f"policy {self.policy.kind!r}" if self.policy.reads_label else None

    @property
    def reads_one_label(self) -> str | None:
        """Part that needs one true class of a picture, as a subject; None if it does without, or takes the heavier."""
        return None if self.loss.takes_heavier_label and not self.policy.reads_label else self.reads_label

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the loss's parts in metrics: the term's name if there is one part, else both names."""
        parts = self.loss.active_parts
        if self.name is None:
            return parts
        return (self.name,) if len(parts) == 1 else tuple(f"{self.name}_{part}" for part in parts)


class Method(Config):
    """``ce_weight`` x cross-entropy of the raw student logits at T=1, plus the warmed-up terms.

    With two views the cross-entropy is the sum over both.

    Attributes:
        name: for messages and metrics.
        warmup_epochs: every term (never the cross-entropy) is scaled by min(epoch / warmup_epochs, 1), epoch from 1.
        distil_epochs: None for both together throughout; else the terms alone for so many epochs, and from then on
            the cross-entropy alone.
    """

    name: str
    ce_weight: Weight = 1.0
    terms: Annotated[tuple[Term, ...], AtMost(TERMS_MAX)] = ()
    warmup_epochs: Epochs = 0
    distil_epochs: Count | None = None

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.ce_weight == 0 and not any(term.weight for term in self.terms):
            raise InvalidMethod(f"method {self.name!r} has only zero weights: give ce_weight or a term a weight > 0")
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = ["ce", *(name for term in self.terms for name in term.part_names)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidMethod(f"two terms of method {self.name!r} are called {twice[0]!r}: give each its own name")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether teacher logits are read at all."""
        return bool(self.terms)

    @property
    def level_readers(self) -> tuple[str, ...]:
        """Policies and losses that depend on where the teacher's logits lie, which log-probabilities have lost."""
        return tuple(dict.fromkeys(term.reads_level for term in self.terms if term.reads_level is not None))

    @property
    def needs_labels(self) -> bool:
        """Whether the true class enters the total, through cross-entropy or a term."""
        return self.ce_weight > 0 or bool(self.label_readers)

    @property
    def label_readers(self) -> tuple[str, ...]:
        """Policies and losses of its terms that need the label of every sample; without any the terms need none."""
        return tuple(dict.fromkeys(term.reads_label for term in self.terms if term.reads_label is not None))

    @property
    def one_label_readers(self) -> tuple[str, ...]:
        """Policies and losses of its terms that are not defined for a mixed picture, which has two classes."""
        return tuple(dict.fromkeys(term.reads_one_label for term in self.terms if term.reads_one_label is not None))

    @property
    def needs_every_label(self) -> str | None:
        """Reason why the method cannot train on a picture without a label beside others with one; None if it can."""
        if not self.label_readers:
            return None
        return f"its distillation itself needs the label of every picture ({' and '.join(self.label_readers)})"

    @property
    def needs_some_label(self) -> str | None:
        """Reason why the method cannot train where no picture has a label; None if its terms can on their own."""
        if not self.terms:
            return "it learns from labels alone"
        if self.distil_epochs is not None:
            return f"after {self.distil_epochs} epochs with the teacher it learns from labels alone"
        if not any(term.weight for term in self.terms):
            return "its distillation has no weight"
        return self.needs_every_label

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the cached teacher statistics that the policies read, sorted."""
        return tuple(sorted({name for term in self.terms for name in term.policy.reads}))

    @property
    def cache_statistics(self) -> tuple[CacheStatistic, ...]:
        """Statistics of the whole cache that its policies and losses read, sorted."""
        parts = [part for term in self.terms for part in (term.policy, term.loss)]
        return tuple(sorted({statistic for part in parts for statistic in part.cache_statistics}))

    @property
    def views(self) -> int:
        """Number of views of each sample that a step trains on: 1 or 2."""
        return max((term.view for term in self.terms), default=1)

    @property
    def learned(self) -> dict[str, float]:
        """Initial value of every learned temperature's theta, by its term's place in ``terms``."""
        policies = {str(place): term.policy for place, term in enumerate(self.terms)}
        return {place: policy.theta for place, policy in policies.items() if isinstance(policy, Learned)}

    def factors(self, epoch: int) -> tuple[float, float]:
        """Scales of the cross-entropy and of the terms in an epoch (counted from 1), phases and warm-up included.

        The authors' epoch 1 of a warm-up of 20 has 0.05; none has 0.
        """
        warmup = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        if self.distil_epochs is None:
            return self.ce_weight, warmup
        return (0.0, warmup) if epoch <= self.distil_epochs else (self.ce_weight, 0.0)

    def shortfall(self, epochs: int) -> str | None:
        """Explain which part of this method a training of so many epochs never reaches; None if it reaches all."""
        if self.distil_epochs is not None and epochs <= self.distil_epochs:
            return (
                f"it trains on the teacher alone for {self.distil_epochs} epochs, and training.epochs is {epochs}: the "
                "cross-entropy, which comes after that, never begins; shorten that phase, or train for longer"
            )
        if epochs < self.warmup_epochs:
            return (
                f"its distillation terms warm up over {self.warmup_epochs} epochs, and training.epochs is {epochs}: "
                f"they reach {epochs / self.warmup_epochs:.0%} of their weight; set warmup_epochs to {epochs} or less, "
                "or train for longer"
            )
        return None

    def epoch_key(self, epoch: int) -> tuple[float, ...]:
        """Equal for two epochs (counted from 1) in which the loss is one function of logits and labels."""
        reads_epoch = any(term.policy.reads_epoch for term in self.terms)
        return (*self.factors(epoch), *((float(epoch),) if reads_epoch else ()))
