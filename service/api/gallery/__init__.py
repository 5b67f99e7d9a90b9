"""Computation behind the routes of pictures, galleries and temperatures: NumPy and pillow, no torch."""
