"""Schemas of the API: the bodies of requests and responses, a module per resource."""
