"""Evaluation of a student on splits, while it trains and at its end, and the temperature that calibrates it."""
