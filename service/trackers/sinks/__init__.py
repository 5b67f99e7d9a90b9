"""Sinks, a class in a file for each tracker; ``registry.py`` lists them."""
