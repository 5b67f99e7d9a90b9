"""Commands that write into the data directory of a service: for its own user alone, and into no other folder."""

import json
import os
import stat
from pathlib import Path

import pytest

from service.cli import main
from tests.support.service_helpers import open_to_others

PREPARE = ("datasets", "prepare", '{"kind": "digits"}', "--split", "test")
SECRET = ("webhooks", "secret")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory of a service."""
    assert main(["keys", "create", "ci", "--scope", "read", "--data-dir", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def test_prepare_and_webhook_secret_leave_nothing_in_the_data_directory_of_another_user(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, mine = set(data.iterdir()), os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 54_321)
        for command in (PREPARE, SECRET):
            assert main([*command, "--data-dir", str(data)]) == 1
            told = capsys.readouterr().err
            assert f"(uid {mine})" in told
            assert "(uid 54321)" in told
            assert f"--data-dir {data}`" in told
    assert set(data.iterdir()) == before
    (data.parent / "other").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 54_321)
        assert main(["keys", "create", "ci", "--scope", "read", "--data-dir", str(data.parent / "other")]) == 1
    assert not list((data.parent / "other").iterdir())


def test_owner_is_who_has_made_the_datasets_where_a_mounted_folder_is_somebody_elses(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "datasets").mkdir()
    whole = Path.stat

    def stat_of(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = whole(path, follow_symlinks=follow_symlinks)
        return os.stat_result((*found[:4], 54_321, *found[5:])) if path == data else found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat_of)
        assert main([*SECRET, "--data-dir", str(data)]) == 0


def test_prepare_is_private_and_says_where(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.umask(0o022)
    capsys.readouterr()
    assert main(["--json", *PREPARE, "--data-dir", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(data / "datasets")
    assert main([*PREPARE, "--data-dir", str(data)]) == 0
    assert f"355 pictures, in {data / 'datasets'}/" in capsys.readouterr().out.replace("\n", "")
    locks = list((data / "datasets").rglob("*lock*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in locks if path.is_file()} == {0o600}
    assert open_to_others(data) == []


def test_prepare_and_webhook_secret_make_no_data_directory_in_the_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RETORT_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    for command in (PREPARE, SECRET):
        assert main(command) == 1
        assert f"{tmp_path / 'retort-data'} is no data directory of a service" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    # Of a server the database is there wherever the command runs.
    monkeypatch.setenv("RETORT_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert main(SECRET) == 1
    assert not list(tmp_path.iterdir())
    assert main([*SECRET, "--data-dir", "retort-data"]) == 0
    # It is one by now.
    assert main(SECRET) == 0
    monkeypatch.delenv("RETORT_DATABASE_URL")
    for notes in (1, 0):
        capsys.readouterr()
        assert main(["keys", "create", "ci", "--scope", "read"]) == 0
        assert capsys.readouterr().err.count(f"note: there was no database, sqlite:///{tmp_path}/retort-data/") == notes
