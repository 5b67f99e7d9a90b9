"""Request of more epochs for a run."""

from typing import Annotated

from pydantic import ConfigDict, Field

from workers.config.training import StepSchedule
from workers.spec import Spec


class ExtensionRequest(Spec):
    """More epochs for a run that has succeeded."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epochs": 40}]})

    epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        description="of the run in all, those that it has included"
    )
    schedule: StepSchedule | None = Field(
        None,
        description="of all epochs, whose milestones lie where the run's did in the epochs that it has; null is the "
        "run's own",
    )
