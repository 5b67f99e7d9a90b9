"""Tests of the repository as such: its documents, and what they say of the code."""
