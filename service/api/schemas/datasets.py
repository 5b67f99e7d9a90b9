"""Documents of datasets: the registration of one, and what is known of it."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict

from service.api.schemas.base import Document, Name
from workers.config.dataset import DatasetSpec
from workers.spec import Spec


class DatasetRequest(Spec):
    """A data set below the data root, and a name to use in jobs."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "flowers", "spec": {"kind": "folder", "path": "flowers"}}]}
    )

    name: Name
    spec: DatasetSpec


class Dataset(Document):
    """A data set with a name; `samples` per split and `classes` are null where only decoding would tell.

    `classes` is null as well where nothing names them: then a teacher's outputs tell.
    """

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    spec: DatasetSpec
    classes: int | None
    samples: dict[str, int] | None
    created_at: datetime
