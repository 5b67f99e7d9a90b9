"""Sinks: what each tracker is told, a class in a file for each. ``registry.py`` lists them."""
