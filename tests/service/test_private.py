"""What the service writes is for its own user: modes of files, folders and databases, of those of yesterday, too."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service import private
from service.private import keep_private
from tests.support.service_helpers import open_to_others


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """As a login shell has it, whatever a test makes of it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_keys_create_makes_a_folder_and_a_database_for_its_owner_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "keys", "create", "ci", "--scope", "read"]
    subprocess.run([*command, "--data-dir", str(tmp_path / "data")], check=True, capture_output=True)
    assert (tmp_path / "data" / "retort.sqlite3").exists()
    assert open_to_others(tmp_path / "data") == []


def test_a_folder_that_others_could_read_is_closed_to_them_with_a_line_in_the_log(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with capture_logs() as lines:
        keep_private(data)
        keep_private(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    [line] = lines
    assert line["mode"] == "0755"
    assert line["log_level"] == "warning"


def test_a_folder_of_another_owner_is_used_as_it_is_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    (tmp_path / "data").mkdir(mode=0o755)
    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(private.Path, "chmod", refuse)
        keep_private(tmp_path / "data")
    [line] = lines
    assert line["event"] == "others can read the data directory"
    assert line["reason"] == "Operation not permitted"
