"""Restore beside trackers: their positions belong to the database that was there before."""

from contextlib import closing
from pathlib import Path

from service.operations.backup import backup
from service.operations.restore import restore
from service.trackers.cursor import Cursor
from tests.service.operations.test_backup import a_service
from tests.support.service_helpers import make_settings


def test_restore_sets_the_positions_of_trackers_aside(tmp_path: Path) -> None:
    """A position that is ahead of the backup's events would leave those out that come after it."""
    old, new = a_service(tmp_path / "old"), make_settings(tmp_path)
    backup(old, tmp_path / "b")
    with closing(Cursor(new.trackers_dir / "mlflow-1.sqlite3")) as cursor:
        cursor.save("job_1", 99)
    _, aside = restore(new, tmp_path / "b")
    assert [path.name.partition(".replaced-")[0] for path in aside] == ["trackers"]
    with closing(Cursor(new.trackers_dir / "mlflow-1.sqlite3")) as cursor:
        assert cursor.is_new
        assert not cursor.knows("job_1")
