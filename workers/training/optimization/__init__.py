"""Optimization: optimizer and learning rate, micro-batches, averaged weights, and updates shared by processes."""
