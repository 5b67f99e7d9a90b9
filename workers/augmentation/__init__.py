"""Augmentation: which view of a picture it is decides every byte of it."""
