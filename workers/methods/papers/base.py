"""Preset: base of the methods that have a name, a frozen pydantic class each. No torch here.

The defaults are the authors' for CIFAR; ``family: imagenet`` swaps in their ImageNet values, and every field can be
overridden. ``expand()`` turns a preset into a ``Method`` (``method.py``), which is all that the objective knows. Where
the released code and the paper differ, the code is followed.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from workers.methods.method import Epochs, Method, Term
from workers.spec import Config, Weight

Family = Literal["cifar", "imagenet"]


class Preset(Config):
    """Base of the presets; the class attributes are what ``describe`` and the README's table tell.

    Attributes:
        imagenet: the defaults that differ for ``family: imagenet``; empty where the authors give none.
        second_view: the authors' ``views.augmentation.second_view``; empty for methods of one view.
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
    second_view: ClassVar[Mapping[str, Mapping[str, int]]] = {}

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
        return Method(
            name=name,
            ce_weight=self.ce_weight,
            terms=self._terms(),
            warmup_epochs=self.warmup_epochs,
            distil_epochs=self._distil_epochs(),
        )

    def _terms(self) -> tuple[Term, ...]:
        raise NotImplementedError

    def _distil_epochs(self) -> int | None:
        return None
