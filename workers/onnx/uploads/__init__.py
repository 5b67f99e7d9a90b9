"""Uploads of ONNX files: packed into one file and inspected, in confined children."""
