"""ASGI middleware around the routes, in the order of ``service.api.app``."""
