"""Datasets: discovery, decoding, prepared arrays, augmentation."""
