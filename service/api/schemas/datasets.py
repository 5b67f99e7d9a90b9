"""Documents of datasets: the registration of one, and what is known of it."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document, Name
from workers.config.dataset import DatasetSpec
from workers.spec import Spec


class DatasetRequest(Spec):
    """A dataset below the data root, and a name to use in jobs."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "flowers", "spec": {"kind": "folder", "path": "flowers"}}]}
    )

    name: Name
    spec: DatasetSpec


class Dataset(Document):
    """A dataset with a name; `samples` per split and `classes` are null where only decoding would tell.

    `samples` count bad pictures, which only decoding finds. `classes` is null as well where nothing names them: then a
    teacher's outputs tell.
    """

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    spec: DatasetSpec
    classes: int | None
    samples: dict[str, int] | None
    notes: list[str] | None = Field(
        description="how the files were understood, in sentences; null but where they were just registered"
    )
    bad_pictures: dict[str, int] | None = Field(
        description="of each split that has some, how many cannot be decoded, as far as jobs have found, and are left "
        "out or refused (`on_bad_picture`); GET /v1/datasets/{dataset_id}/bad-pictures names them. Null in lists"
    )
    created_at: datetime
