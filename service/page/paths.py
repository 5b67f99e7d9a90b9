"""Paths of the page, and names of its cookies. Importing this module loads no NiceGUI."""

from urllib.parse import quote

from starlette.requests import HTTPConnection

# Followed by a digest of the service's secret: browsers tell cookies of several ports of one host apart by name alone.
SESSION_COOKIE = "retort_session_"
SESSION_KEY = "api_key"
# Followed by a path of the API: what a browser loads itself, with the key of its session.
VIEWER_PREFIX = "/viewer"
LOGIN_PATH = "/login"
LOGOUT_PATH = "/logout"
THEME_PATH = "/theme"
THEME_COOKIE = "retort_theme"
# First segments of the paths that the page answers, those of NiceGUI's own files and its socket among them.
_SEGMENTS = frozenset(
    {
        "",
        "_nicegui",
        "_nicegui_ws",
        "assets",
        "caches",
        "datasets",
        "favicon.ico",
        "gallery",
        "jobs",
        "login",
        "logout",
        "new",
        "runs",
        "student-files",
        "teachers",
        "temperatures",
        "theme",
        "viewer",
    }
)


# Of these, what whoever has no key may have.
_OPEN_SEGMENTS = frozenset({"_nicegui", "favicon.ico", "login", "logout", "theme"})


def is_page_path(path: str) -> bool:
    """Whether the page answers this path, and not the API."""
    return path == "/" or (_segment(path) in _SEGMENTS and _segment(path) != "")


def needs_key(path: str) -> bool:
    """Whether a path of the page is for those alone who have logged in, where there are keys."""
    return _segment(path) not in _OPEN_SEGMENTS


def login_url(request: HTTPConnection) -> str:
    """Address of the log-in that leads back to the view that was asked for."""
    query = f"?{request.url.query}" if request.url.query else ""
    return f"{LOGIN_PATH}?next={quote(request.url.path + query, safe='')}"


def _segment(path: str) -> str:
    # A request for something that is no path, such as ``*``, has none.
    return path.split("/", 2)[1] if path.startswith("/") else ""


def viewer_url(api_path: str) -> str:
    """Address under which a browser with a session loads what the API has at ``api_path`` (``/v1/...``)."""
    return f"{VIEWER_PREFIX}{api_path}"
