"""Views of the page, one module for each: importing it registers them."""

from importlib import import_module

MODULES = ("job", "jobs", "run")


def register_all() -> None:
    """Register the views of all modules."""
    for name in MODULES:
        import_module(f"{__name__}.{name}")
