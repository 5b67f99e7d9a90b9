"""Settings of commands that write files into the data directory of a service, beside its processes."""

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.base import CommandFailed

if TYPE_CHECKING:
    from service.settings import Settings


def settings_to_write(data_dir: Path | None, data_root: Path | None = None) -> "Settings":
    """Settings of the service whose data directory a command writes to; what it makes there is private from now on.

    Args:
        data_dir: as the command line names it; None takes the settings' own, which has to be that of a service.
        data_root: likewise; None takes the settings' own.

    Raises:
        CommandFailed: no data directory was named, and the settings' has no database; or it is another user's.
    """
    from service.db.database import Database
    from service.private import keep_private
    from service.settings import Settings

    given: dict[str, Any] = {"data_dir": data_dir, "data_root": data_root}
    settings = Settings(**{name: path for name, path in given.items() if path is not None})
    check_owner(settings)
    # A server's database says nothing of the folder.
    if data_dir is None and not (settings.data_dir.is_dir() and Database(settings.database).exists()):
        raise CommandFailed(
            f"{settings.data_dir.resolve()} is no data directory of a service: it has no database. Name the service's "
            "with --data-dir (or RETORT_DATA_DIR); --data-dir takes one that no service has been started on, too"
        )
    keep_private(settings.data_dir)
    return settings


def check_owner(settings: "Settings") -> None:
    """Refuse to write to the data directory of another user, whose service could not open what this one makes.

    A mounted folder may be root's and what the service has made in it the service's, so that counts.

    Raises:
        CommandFailed: naming both users, and the way.
    """
    folder = settings.data_dir
    if not folder.is_dir():
        return
    if os.access(folder, os.X_OK) and settings.datasets_dir.is_dir():
        folder = settings.datasets_dir
    owner, mine = folder.stat().st_uid, os.geteuid()
    if owner == mine:
        return
    name, shell_id = _user_name(owner), f"'#{owner}'"
    raise CommandFailed(
        f"{folder.resolve()} belongs to {name or 'a user'} (uid {owner}), and this command runs as "
        f"{_user_name(mine) or 'a user'} (uid {mine}): the service could not use the files that it would leave there. "
        f"Run it as the service's user (`sudo -u {name or shell_id} retort ... --data-dir "
        f"{settings.data_dir.resolve()}`), or in the service's container"
    )


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
