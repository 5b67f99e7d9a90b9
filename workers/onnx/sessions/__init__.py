"""Sessions of ONNX Runtime: in this process, in a confined child, and the smoke run."""
