"""Permissions of what the service writes: the data directory and all in it are for the user that it runs as."""

import os
import stat
from pathlib import Path

import structlog

_OTHERS = stat.S_IRWXG | stat.S_IRWXO

log = structlog.get_logger("service.private")


def keep_private(data_dir: Path) -> None:
    """Creates ``data_dir`` with mode 0700; what this process and its children create from now on is 0700 or 0600.

    A folder that is there and open to others is closed to them, which closes what lies in it, whatever its mode. One
    of another owner is left as it is; the log says either.
    """
    os.umask(_OTHERS)
    data_dir.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(data_dir.stat().st_mode)
    if not mode & _OTHERS:
        return
    found = f"{mode:04o}"
    try:
        data_dir.chmod(mode & ~_OTHERS)
    except OSError as error:
        log.warning("others can read the data directory", data_dir=str(data_dir), mode=found, reason=error.strerror)
    else:
        log.warning("others could read the data directory; now they cannot", data_dir=str(data_dir), mode=found)
