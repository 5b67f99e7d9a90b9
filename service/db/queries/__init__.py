"""Queries that several parts of the service read by: API, reports, curves, caches, search, packed events, versions."""
