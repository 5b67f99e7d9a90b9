"""Checkpoints: written, resumed, and continued by a run of more epochs."""
