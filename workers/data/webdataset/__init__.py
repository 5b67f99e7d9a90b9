"""WebDataset shards: tar headers, indexes, pictures read by their offsets."""
