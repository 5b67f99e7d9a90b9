"""ONNX files from strangers: check, sandbox, smoke run, session."""

import os

# ONNX Runtime's own wheels send names and hashes of every model to its makers unless this is set before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
