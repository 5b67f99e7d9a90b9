"""Request of more epochs for a run."""

from typing import Annotated

from pydantic import ConfigDict, Field

from workers.config.schedules import Schedule
from workers.spec import Positive, Spec


class ExtensionRequest(Spec):
    """More epochs for a run that has succeeded."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"epochs": 40}, {"epochs": 40, "learning_rate": 0.02, "schedule": {"kind": "cosine"}}]
        }
    )

    epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        description="of the run in all, those that it has included"
    )
    schedule: Schedule | None = Field(
        None,
        description="of all epochs since the last restart (`step`, whose milestones lie where the run's did in the "
        "epochs that it has since), or, with `learning_rate`, of the added ones alone; null is the run's own",
    )
    learning_rate: Positive | None = Field(
        None,
        description="from which the added epochs run a schedule of their own, as a warm restart; null goes on in the "
        "schedule of the run",
        exclude_if=lambda given: given is None,
    )
