"""Views of the page, one module for each: importing it registers them."""

from importlib import import_module

# Of two that know a path, the first answers: ``/caches/import`` is no key.
MODULES = (
    "add_runs",
    "cache_import",
    "caches",
    "datasets",
    "extend",
    "gallery",
    "job",
    "jobs",
    "new_job",
    "run",
    "student_files",
    "teachers",
    "temperatures",
)


def register_all() -> None:
    """Register the views of all modules."""
    for name in MODULES:
        import_module(f"{__name__}.{name}")
