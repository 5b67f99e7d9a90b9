"""Limit of open files of this process: often 1,024, too few for an API's connections and an engine's cache leases."""

import resource

FILES_WANTED = 65_536


def open_files_max() -> int | None:
    """Limit of open files of this process; None for any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_open_files() -> None:
    """Raise the soft limit of open files, often 1,024, towards the hard one; at most to ``FILES_WANTED``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
