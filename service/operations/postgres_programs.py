"""PostgreSQL's client programs, run on a database without its password on a command line."""

import os
import subprocess

from sqlalchemy.engine import URL

from service.errors import BackupFailed


def run_postgres(program: str, url: URL, *options: str, stdout: int = subprocess.DEVNULL) -> None:
    """Run one of PostgreSQL's programs. Raises BackupFailed."""
    # What stands on a command line is everybody's to read.
    bare = url.set(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({} if url.password is None else {"PGPASSWORD": str(url.password)})
    try:
        done = subprocess.run(
            [program, *options, f"--dbname={bare}"], stdout=stdout, stderr=subprocess.PIPE, env=environment
        )
    except FileNotFoundError:
        raise BackupFailed(
            f"there is no {program} on PATH: install PostgreSQL's client programs, of the server's version or newer"
        ) from None
    if done.returncode:
        raise BackupFailed(f"{program} has failed: {done.stderr.decode(errors='replace').strip()}")
