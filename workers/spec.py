"""Base of the configurations of temperature policies and of distillation losses. No torch here.

A policy is configured and computed in its file of ``methods/policies``; a loss is configured by a class of
``losses.py`` and computed in ``objective/distillation.py``; ``method.py`` pairs them. Each is told apart by ``kind``;
its class attributes are its documentation, and nothing else about it is written down twice.

Notation of the formulas: z_s, z_t student and teacher logits of one sample, y its label, S softmax, T_s and T_t the
policy's temperatures and W its weight, p = S(z_t/T_t), q = S(z_s/T_s), H(a, b) cross-entropy, C classes; losses are
means over the batch of sums over classes. std divides by C-1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from workers.errors import UnknownName

# Strict: "4" and true are mistakes, not temperatures. The bounds keep T and T^2 well inside float32.
Temperature = Annotated[float, Field(strict=True, ge=1e-3, le=1e4, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0.0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Flag = Annotated[bool, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # also the key of a cache
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
# Pixels; a size is (height, width).
Side = Annotated[int, Field(strict=True, ge=1, le=4096)]
Size = tuple[Side, Side]
RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]
Finite = Annotated[float, Field(strict=True, ge=-1e4, le=1e4, allow_inf_nan=False)]


@dataclass(frozen=True)
class AtMost:
    """Counts the items of a list before any is looked at: ``max_length`` alone reports each of 100,000 wrong ones."""

    count: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """For pydantic."""
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For pydantic."""
        return handler(schema) | {"maxItems": self.count}

    def _check(self, value: object) -> object:
        if isinstance(value, list | tuple) and len(value) > self.count:
            raise ValueError(f"there are {len(value)} items, at most {self.count} are allowed")
        return value


class Config(BaseModel):
    """Base of every class here: frozen, and an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise UnknownName(cls._kind_of_key(), str(key), cls.model_fields)
        return data

    @classmethod
    def _kind_of_key(cls) -> str:
        """Name of a key of this class in a message, after its ``kind`` or ``preset``, else after its name."""
        for tag in ("preset", "kind"):
            if tag in cls.model_fields:
                return f"parameter of {cls.model_fields[tag].default!r}"
        return f"parameter of {cls.__name__.lower()}"


MethodPartT = TypeVar("MethodPartT", bound="MethodPart")


class Spec(Config):
    """Base of every part of a job's description but its methods."""

    @classmethod
    def _kind_of_key(cls) -> str:
        return f"field of {cls.__name__}"


class MethodPart(Config):
    """Base of policies and losses; the attributes are what ``describe_policies`` and the API tell.

    Attributes:
        title: one line for a person.
        formula: the mathematics as text.
        paper: where it comes from.
    """

    title: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]

    kind: str


def by_kind(base: type[MethodPartT]) -> dict[str, type[MethodPartT]]:
    """The classes that derive from ``base``, in their order, by the value of their ``kind``."""
    return {cls.model_fields["kind"].default: cls for cls in base.__subclasses__()}
