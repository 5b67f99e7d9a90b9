"""Paths of the page, and names of its session. Importing this module loads no NiceGUI."""

SESSION_COOKIE = "retort_session"
SESSION_KEY = "api_key"
# Followed by a path of the API: what a browser loads itself, with the key of its session.
VIEWER_PREFIX = "/viewer"
LOGIN_PATH = "/login"
LOGOUT_PATH = "/logout"
THEME_PATH = "/theme"
THEME_KEY = "theme"
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
        "teachers",
        "temperatures",
        "theme",
        "viewer",
    }
)


def is_page_path(path: str) -> bool:
    """Whether the page answers this path, and not the API."""
    return path.split("/", 2)[1] in _SEGMENTS


def viewer_url(api_path: str) -> str:
    """Address under which a browser with a session loads what the API has at ``api_path`` (``/v1/...``)."""
    return f"{VIEWER_PREFIX}{api_path}"
