"""Documents of webhooks: the request for one, and its delivery."""

from datetime import datetime
from typing import Self

from pydantic import ConfigDict, Field, HttpUrl

from service.api.schemas.base import Document
from service.db.webhook_outbox import DeliveryStatus, WebhookDeliveryRecord


class WebhookRequest(Document):
    """A URL that is sent a signed message once the job has ended, by the Standard Webhooks specification."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: HttpUrl = Field(
        description="its host has to be one of those that the service's operator allows; who may read the job reads it",
        examples=["https://hooks.example.org/retort"],
    )


class WebhookDelivery(Document):
    """Delivery of the message at the end of a job."""

    url: str
    id: str = Field(description="of the message: the header `webhook-id`, the same in every attempt")
    status: DeliveryStatus = Field(description="`waiting` until the job has ended")
    attempts: int
    last_attempt_at: datetime | None
    last_status_code: int | None = Field(description="of the last answer; null if there was none")
    last_error: str | None = Field(description="why the last attempt did not deliver it")
    next_attempt_at: datetime | None

    @classmethod
    def of(cls, row: WebhookDeliveryRecord) -> Self:
        """Document of a row."""
        columns = {name: getattr(row, name) for name in cls.model_fields if name != "next_attempt_at"}
        return cls.model_validate({**columns, "next_attempt_at": row.next_at})


class JobWebhook(WebhookDelivery):
    """Delivery of a job's webhook in the list of all."""

    job_id: str
