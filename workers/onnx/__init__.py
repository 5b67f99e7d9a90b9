"""ONNX files from strangers: check, sandbox, smoke run, session."""
