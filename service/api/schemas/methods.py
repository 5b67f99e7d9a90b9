"""Documents of methods: presets, the parts of ``custom``, and the preview of temperatures on a cache."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from service.api.schemas.base import Document, Page, Sha256
from workers.config.training import Training
from workers.methods.catalog import MethodChoice
from workers.methods.preview_report import PreviewTerm
from workers.spec import Spec


class Needs(Document):
    """Needs of a method: what it has to be given."""

    teacher: bool
    labels: bool
    statistics: list[str] = Field(description="the cached statistics that its policies read")
    views: int = Field(description="views of each sample that a step compares: 1 or 2")
    whole_batch: bool = Field(description="whether a sample's loss depends on the others of its batch")
    learned: bool = Field(description="whether a temperature is a parameter that is trained beside the student")


class Method(Document):
    """A preset: what it computes, where it comes from, and the JSON Schema of its parameters."""

    object: Literal["method"] = "method"
    id: str
    title: str
    paper: str
    formula: str
    verified: str = Field(description="against what its numbers were checked")
    defaults: dict[str, dict[str, JsonValue]] = Field(description="per dataset family")
    needs: Needs
    json_schema: dict[str, Any]


class Part(Document):
    """A temperature policy or a distillation loss that a `custom` method can combine."""

    model_config = ConfigDict(extra="allow")

    kind: str
    title: str
    formula: str
    paper: str
    defaults: dict[str, JsonValue]
    json_schema: dict[str, Any]


class MethodPage(Page[Method]):
    """Every preset, and the parts of which `custom` is made."""

    policies: list[Part]
    losses: list[Part]


EXAMPLE_CACHE = "3f" * 32
Epochs = Annotated[int, Field(strict=True, ge=1, le=100_000)]


class PreviewRequest(Spec):
    """A method as a job writes it, and the cache whose statistics it is to read."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": {
                        "preset": "custom",
                        "terms": [{"policy": {"kind": "expression", "temperature": "clip(2 * std, 1, 8)"}}],
                    },
                    "cache": EXAMPLE_CACHE,
                }
            ]
        }
    )

    method: MethodChoice
    cache: Sha256
    student_cache: Sha256 | None = Field(
        None,
        description="the cache of another network on the same views, whose statistics stand for the student's; "
        "null takes the teacher's own",
    )
    epoch: Epochs = Field(1, description="counted from 1; annealed and expression policies may read it")
    epochs: Epochs = Field(Training().epochs, description="of the whole run; expression policies may read it")
    bins: Annotated[int, Field(strict=True, ge=1, le=200)] = Field(32, description="of each histogram")

    @model_validator(mode="after")
    def _within_the_run(self) -> Self:
        if self.epoch > self.epochs:
            raise ValueError(f"epoch is {self.epoch}; it must not exceed epochs, {self.epochs}")
        return self


class MethodPreview(Document):
    """The temperatures that a method would give on a cache, term by term; cross-entropy has no term."""

    object: Literal["method_preview"] = "method_preview"
    method: str
    cache: str
    student_cache: str | None
    views: int
    samples: int
    classes: int
    epoch: int
    epochs: int
    terms: tuple[PreviewTerm, ...]
