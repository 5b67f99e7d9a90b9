"""The HTTP API: app, routes, and what surrounds every request."""
