"""Encodings of a cache's rows: what is stored of the logits, and how they come back."""
