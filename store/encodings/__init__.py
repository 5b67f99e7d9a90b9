"""Encodings of a cache's rows: from logits to stored arrays, and back."""
