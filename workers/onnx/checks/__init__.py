"""Checks of an ONNX file by reading: rules, operators, inputs, outputs; nothing is run."""
