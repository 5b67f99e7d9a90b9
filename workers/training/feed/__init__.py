"""Feed of batches: pictures of a split, tables of an epoch, loading and prefetch ahead of the loop."""
