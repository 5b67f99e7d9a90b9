"""The client for ``async`` code: against a real API over sockets, through a breaking network, and in one process."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from service.api.app import create_app
from service.client import AsyncClient
from service.client.errors import ApiProblem, ServiceUnreachable, WaitTimeout
from service.db.database import upgrade_to_head
from tests.support.client_cases import ARTIFACT, artifact_path, run_with_artifact, tell_and_end
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service_helpers import PREPROCESSING, Api, add_job, make_settings, onnx_bytes

pytest_plugins = ["tests.support.service_fixtures"]


def port_of(api: Api) -> int:
    port = urlsplit(api.url).port
    assert port is not None
    return port


def test_async_client_submits_controls_and_waits_for_a_job(api: Api) -> None:
    async def main() -> None:
        async with AsyncClient(api.url) as client:
            preview = await client.submit(api.job_body(), dry_run=True)
            assert len(preview.runs) == 2
            job = await client.submit(api.job_body())
            assert await job.pause() is job
            assert job.state == "paused"
            with pytest.raises(WaitTimeout):
                await job.wait(timeout_s=0.2)
            assert (await job.resume()).state == "queued"
            await asyncio.to_thread(tell_and_end, api, job.id, 3)
            assert (await job.wait()).state == job["state"] == "succeeded"
            assert [event.type async for event in job.events()][-1] == "done"
            assert [run.id async for run in job.runs()] == job.run_ids
            assert [each.id async for each in client.jobs(status="succeeded")] == [job.id]
            assert (await job.report()).rows[0].state == "succeeded"
            with pytest.raises(ApiProblem, match="no job 'job_nope'"):
                await client.job("job_nope")

    asyncio.run(main())


def test_async_client_resumes_events_and_downloads_that_break(api: Api, tmp_path: Path) -> None:
    run_id = run_with_artifact(api, 1_000_000)
    job_id = add_job(api.queries).id
    tell_and_end(api, job_id, 40)

    async def events(url: str) -> list[object]:
        async with AsyncClient(url) as client:
            return [event async for event in client.events(job_id)]

    async def download(url: str) -> Path:
        async with AsyncClient(url) as client:
            return await client.download(run_id, ARTIFACT, tmp_path / ARTIFACT)

    with CuttingProxy(port_of(api), [100, 1500, 4001]) as proxy:
        assert asyncio.run(events(proxy.url)) == asyncio.run(events(api.url))
        assert len(proxy.passed) == 4
    with CuttingProxy(port_of(api), [300_000, 500_000]) as proxy:
        assert asyncio.run(download(proxy.url)).read_bytes() == artifact_path(api, run_id).read_bytes()
        assert len(proxy.passed) == 3


def test_async_client_uploads_and_pages_in_one_process_with_the_application(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.make_folders()
    upgrade_to_head(settings.database)
    app = create_app(settings)
    (tmp_path / "linear.onnx").write_bytes(onnx_bytes())

    async def main() -> None:
        transport = httpx2.ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport) as client:
            preprocessing = PREPROCESSING.model_dump(mode="json")
            teacher = await client.upload_teacher(tmp_path / "linear.onnx", preprocessing=preprocessing)
            assert [each.id async for each in client.teachers()] == [teacher.id]
            grid = {"teacher": teacher.id, "dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["ce"]}
            job = await client.submit(grid)
            assert (await client.cancel(job.id)).state == "cancelled"
            assert [event.type async for event in client.stored_events(job.id)] == ["state"] * 2
            assert (await client.ready())["ready"] is False

    asyncio.run(main())
    app.state.context.database.close()


def test_async_client_names_a_service_that_is_not_there() -> None:
    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:9") as client:
            await client.job("job_x")

    with pytest.raises(ServiceUnreachable, match="`retort serve`"):
        asyncio.run(main())
