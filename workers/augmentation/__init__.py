"""Augmentation: deterministic views of pictures, drawn by a counter-based generator."""
