"""What goes over the wire about methods on a cache, as ``schemas.py`` has the rest: the preview of temperatures."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from service.api.schemas import Document, Sha256
from workers.config.training import Training
from workers.methods.catalog import MethodChoice
from workers.methods.preview import StudentIs
from workers.spec import Spec

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


class PreviewRow(Document):
    """A row of the cache with the value it is given."""

    view: int
    sample: int = Field(description="its place in the split, from 0")
    value: float
    teacher: dict[str, float] = Field(description="the teacher's statistics of this row")
    student: dict[str, float] | None = Field(
        description="those that stand for the student's; null if the policy reads none of them"
    )


class Histogram(Document):
    """Bins of equal width; a single one of no width if all values are equal."""

    counts: list[int]
    edges: list[float] = Field(description="one more than there are counts")


class Distribution(Document):
    """A temperature or weight over all rows of the cache."""

    mean: float
    std: float = Field(description="divides by the number of rows")
    quantiles: dict[str, float] = Field(description="p0, p1, p5, p25, p50, p75, p95, p99, p100, in percent")
    histogram: Histogram
    lowest: list[PreviewRow] = Field(description="five rows, lowest first; of equal ones the first by view and sample")
    highest: list[PreviewRow] = Field(description="five rows, highest first; of equal ones the first likewise")


class PreviewTerm(Document):
    """What the temperature policy of one of the method's terms gives."""

    parts: list[str] = Field(description="what metrics call the parts of its loss")
    policy: str
    loss: str
    student_is: StudentIs = Field(
        description="whose statistics stood for the student's: nobody's if the policy reads none of them"
    )
    notes: list[str] = Field(description="what was assumed, in sentences")
    teacher: Distribution = Field(description="of the temperature that divides the teacher's logits")
    student: Distribution = Field(description="of the temperature that divides the student's logits")
    weight: Distribution = Field(description="of the policy's factor, T^2 or its like, without the term's own weight")


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
    terms: list[PreviewTerm]
