"""Decoding of pictures to RGB, in blocks and by threads; pictures that cannot be decoded."""
