"""Tests by behaviour, benchmarks (``tests/benchmarks``) and the golden values (``tests/golden``)."""
