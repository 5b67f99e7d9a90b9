"""Artifacts of a trained student: ONNX, int8, model folder and card, TensorBoard events, bundle."""
