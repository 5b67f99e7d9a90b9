"""Bodies that take long to validate: how much work one may make, that others are answered meanwhile, and what stays."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.bodies import json_bodies
from service.api.bodies.limits import BodyLimit, Pace
from service.api.schemas.amounts import EXPRESSIONS_CHARACTERS_MAX, TERMS_MAX
from service.api.schemas.jobs import JobRequest
from tests.benchmarks.memory import own_bytes
from tests.service.api.test_routes import problem
from tests.support.service_helpers import Api
from workers.methods import expression_parser
from workers.methods.papers.base import Preset

pytest_plugins = ["tests.support.service_fixtures"]
# Nested too deeply: it is parsed before that is known.
CHAIN = "+".join(["max*0"] * 60)


def custom(name: str, *texts: str) -> dict[str, Any]:
    """A method of one expression policy for each text."""
    terms = [{"policy": {"kind": "expression", "temperature": text}, "name": f"t{i}"} for i, text in enumerate(texts)]
    return {"preset": "custom", "name": name, "terms": terms}


def test_body_refused_leaves_no_memory(shared_api: Api) -> None:
    """50 of 0.2 MB, each of which takes 2 MB once it is parsed: a circle that nobody frees would keep all of it."""
    filler = [custom(f"m{i}", *["max"] * 32) for i in range(100)]
    body = shared_api.job_body(methods=[custom("bad", f"{CHAIN}+1"), *filler])

    def refuse(times: int) -> int:
        for _ in range(times):
            problem(shared_api.client.post("/v1/jobs", json=body), 422, "invalid-request")
        gc.collect()
        return own_bytes("VmRSS", "status")

    before = refuse(5)
    assert refuse(50) - before < 20 << 20


def test_body_of_more_expressions_than_allowed_is_refused_before_one_is_parsed(shared_api: Api) -> None:
    text = f"max({', '.join(['min'] * 60)})"
    enough = EXPRESSIONS_CHARACTERS_MAX // len(text)
    methods = [custom(f"m{i}", text) for i in range(enough + 1)]
    parsed = expression_parser.parse.cache_info()
    body = shared_api.job_body(methods=methods)
    answer = problem(shared_api.client.post("/v1/jobs?dry_run=true", json=body), 422, "invalid-request")
    assert f"have {len(methods) * len(text)} characters in all, at most 65536 are allowed" in answer["detail"]
    assert expression_parser.parse.cache_info() == parsed
    JobRequest.model_validate({**body, "methods": [custom(f"m{i}", text) for i in range(enough)]})


def test_body_of_more_terms_than_allowed_is_refused(shared_api: Api) -> None:
    term = {"policy": {"kind": "fixed", "temperature": 4}}
    methods = [{"preset": "custom", "name": f"m{i}", "terms": [term] * 32} for i in range(TERMS_MAX // 32 + 1)]
    body = shared_api.job_body(methods=methods)
    answer = problem(shared_api.client.post("/v1/jobs?dry_run=true", json=body), 422, "invalid-request")
    assert "have 4128 terms in all, at most 4096 are allowed" in answer["detail"]


def test_body_is_refused_at_its_first_wrong_method(shared_api: Api) -> None:
    methods = [custom(f"m{i}", f"{CHAIN} + {i}") for i in range(100)]
    before = expression_parser.parse.cache_info().misses
    answer = problem(
        shared_api.client.post("/v1/jobs", json=shared_api.job_body(methods=methods)), 422, "invalid-request"
    )
    assert [field["pointer"] for field in answer["errors"]] == ["#/methods/0"]
    assert expression_parser.parse.cache_info().misses == before + 1


def test_body_of_1000_methods_is_compared_without_comparing_each_pair(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of 38 kB took half a second for that."""
    compared = 0
    equal = Preset.__eq__

    def counting(self: Preset, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(Preset, "__eq__", counting)
    methods = [{"preset": "kd", "temperature": 1 + i} for i in range(1000)]
    body = shared_api.job_body(methods=methods)
    assert shared_api.client.post("/v1/jobs?dry_run=true", json=body).status_code == 200
    assert compared < 10_000
    body["methods"][-1] = methods[0]
    assert "twice" in problem(shared_api.client.post("/v1/jobs", json=body), 422, "invalid-request")["detail"]


def test_body_is_validated_beside_the_event_loop(shared_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered while one is validated, which here takes until they were."""
    validate, begun, answered = json_bodies._validated, threading.Event(), threading.Event()

    def waiting(model: type[JobRequest], body: object) -> JobRequest:
        begun.set()
        assert answered.wait(30)
        return validate(model, body)

    monkeypatch.setattr(json_bodies, "_validated", waiting)
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(shared_api.client.post, "/v1/jobs?dry_run=true", json=shared_api.job_body())
        assert begun.wait(30)
        assert shared_api.client.get("/healthz").status_code == 200
        answered.set()
        assert posted.result().status_code == 200


def test_a_client_that_leaves_is_noticed_while_a_body_is_read() -> None:
    """A stream that waits for that would otherwise stand in line, and keep its place among its key's."""
    messages: list[Message] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]
    heard: list[str] = []
    checked: list[bytes] = []

    async def receive() -> Message:
        return messages[len(heard)]

    async def stream(_scope: Scope, receive: Receive, _send: Send) -> None:
        for _ in messages:
            heard.append((await receive())["type"])

    class Reading:
        async def run(self, _function: object, text: bytes) -> None:
            checked.append(text)

    async def answer() -> None:
        app = SimpleNamespace(state=SimpleNamespace(body_thread=Reading()))
        scope = {"type": "http", "method": "GET", "path": "/v1/events", "headers": [], "app": app}
        await BodyLimit(stream, (100, Pace(1, 1, 1)), {})(scope, receive, AsyncMock())

    asyncio.run(answer())
    assert (heard, checked) == (["http.request", "http.disconnect"], [b"{}"])
