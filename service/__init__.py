"""Service: the HTTP API, the database behind it, and the engine that turns jobs into work.

The API process loads ``store`` and the light modules of ``workers`` alone: no torch, no onnxruntime, no ray.
"""
