"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """The version of the installed package; ``0+source`` where it is not installed."""
    try:
        return version("retort")
    except PackageNotFoundError:
        return "0+source"
