"""Paths of the API: its address, and the template of the route that answers a request."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command line asks where the service listens, and is installed without Starlette.
    from starlette.types import Scope

API_PREFIX = "/v1"
# The API's description: Swagger UI, and ReDoc.
DOCS_PATH = "/docs"
REDOC_PATH = "/redoc"
UPLOAD_PATH = f"{API_PREFIX}/teachers"
IMPORT_PATH = f"{API_PREFIX}/caches"
STUDENT_UPLOAD_PATH = f"{API_PREFIX}/student-files"
UPLOAD_PATHS = frozenset({UPLOAD_PATH, IMPORT_PATH, STUDENT_UPLOAD_PATH})
# Asked by load balancers and supervisors, which have no key and must not be kept waiting.
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
# Asked by machines, again and again.
POLLED_PATHS = HEALTH_PATHS | {"/metrics"}
# Documents made of the database's rows, the same for every caller, by the rows that they are made of
# (``service.db.queries.version.SourceKind``): no files, and no clock but where a job's backoff runs out. A report with
# tests per sample reads artifacts, too, which the database names by their digests and which never change.
DATABASE_ROUTES = {
    f"{API_PREFIX}/jobs": "jobs",
    f"{API_PREFIX}/jobs/{{job_id}}": "job",
    f"{API_PREFIX}/jobs/{{job_id}}/runs": "job",
    f"{API_PREFIX}/jobs/{{job_id}}/report": "job",
    f"{API_PREFIX}/jobs/{{job_id}}/curves": "job",
    f"{API_PREFIX}/jobs/{{job_id}}/events": "database",
    f"{API_PREFIX}/runs/{{run_id}}": "run",
    f"{API_PREFIX}/runs/{{run_id}}/metrics": "database",
    f"{API_PREFIX}/runs/{{run_id}}/artifacts": "database",
    f"{API_PREFIX}/runs/{{run_id}}/events": "database",
}
OTHER = "other"


def route_of(scope: "Scope") -> str:
    """The template of the route that answers, such as ``/v1/jobs/{job_id}``; ``other`` where there is none."""
    template: str | None = getattr(scope.get("route"), "path", None)
    if template is None:
        return OTHER
    # A route that was included under the prefix does not have it in its own path.
    return API_PREFIX + template if scope["path"].startswith(f"{API_PREFIX}/") else template


def local_url(host: str, port: int) -> str:
    """The address under which this machine reaches a server that listens on ``host``."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


# Of a cache's export, by its format.
EXPORT_SUFFIXES = {"npz": ".npz", "parquet": ".parquet", "zarr": ".zarr.zip"}
