"""ASGI middleware around the routes, outermost first in ``service.api.app``."""
