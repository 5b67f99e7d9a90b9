"""Tests by behaviour, and the golden values (``tests/golden``)."""
