"""Who may call, and where the API listens."""

from pathlib import Path

import pytest

from service.errors import BadKeyFile, UnsafeBinding
from service.server import build_server
from tests.service_helpers import Api, make_settings, running_api
from tests.test_service_api import problem

pytest_plugins = ["tests.service_fixtures"]
KEY = "0123456789abcdef0123456789abcdef"


def test_with_a_key_every_route_of_v1_asks_for_it(tmp_path: Path) -> None:
    """Health does not: a load balancer has no key."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    with running_api(make_settings(tmp_path, api_key_file=tmp_path / "key")) as api:
        paths = [path for path in api.client.get("/openapi.json").json()["paths"] if path.startswith("/v1/")]
        assert len(paths) > 15
        for path in paths:
            response = api.client.get(path)
            if response.status_code != 405:
                problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer"):
            problem(api.client.get("/v1/jobs", headers={"Authorization": wrong}), 401, "unauthorized")
        assert api.upload().status_code == 401
        assert list(api.settings.teachers_dir.iterdir()) == []
        assert api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert api.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_without_a_key_the_api_listens_on_this_machine_only(tmp_path: Path, host: str) -> None:
    """And says both ways out."""
    with pytest.raises(UnsafeBinding, match="RETORT_API_KEY_FILE") as caught:
        build_server(make_settings(tmp_path, host=host))
    assert repr(host) in str(caught.value)
    (tmp_path / "key").write_text(KEY)
    server = build_server(make_settings(tmp_path, host=host, api_key_file=tmp_path / "key"))
    assert server.config.host == host


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("", "0 characters"), ("short\n", "5 char")])
def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    """Missing, empty, or too short to be a secret."""
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadKeyFile, match=words) as caught:
        build_server(make_settings(tmp_path, api_key_file=path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8765"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": "rebound.example.org"}, 403),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_without_a_key_pages_from_elsewhere_are_turned_away(
    shared_api: Api, headers: dict[str, str], status: int
) -> None:
    """A browser on this machine would carry out what any page asks of it."""
    response = shared_api.client.get("/v1/jobs", headers=headers)
    assert response.status_code == status
    if status == 403:
        problem(response, 403, "foreign-origin")
