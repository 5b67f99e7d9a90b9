"""Views of the page, one module for each: importing it registers them."""

from importlib import import_module

MODULES = ("caches", "datasets", "gallery", "job", "jobs", "new_job", "run", "teachers", "temperatures")


def register_all() -> None:
    """Register the views of all modules."""
    for name in MODULES:
        import_module(f"{__name__}.{name}")
