"""Problem documents (RFC 9457)."""

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document


class FieldProblem(Document):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body, or `query/...`, `header/...`")
    detail: str


class Problem(Document):
    """RFC 9457: what went wrong, for a program (`type`) and for a person (`detail`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:retort:problem:unknown-name",
                    "title": "Unknown name",
                    "status": 422,
                    "detail": "unknown method 'kdd'. Did you mean 'kd'? Allowed: atkd, ce, ...",
                    "instance": "/v1/jobs",
                    "request_id": "01m7yt5knp2b4d7r46qbv3d8r3",
                    "errors": [],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="the same as in the header X-Request-Id and in the log")
    errors: list[FieldProblem] = []
