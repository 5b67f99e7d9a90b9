"""Request of runs that are added to a job."""

from collections.abc import Mapping

from pydantic import ConfigDict, model_validator

from service.api.schemas.amounts import check_amount
from workers.config.run_block import RunBlock


class RunsRequest(RunBlock):
    """Further runs of a job: students x methods x seeds, in the form that a job has them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"students": ["cnn_s"], "methods": [{"preset": "kd", "temperature": 2}], "seeds": [0, 1]}]
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _check_amount(cls, data: object) -> object:
        """Limit the counts before anything is parsed."""
        if isinstance(data, Mapping):
            check_amount(data.get("methods"))
        return data
