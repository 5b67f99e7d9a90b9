"""Operators of ONNX Runtime (domain com.microsoft) that a teacher may use: an allow-list.

The domain has more than a hundred, most of them for generating text: they take positions, lengths and caches of earlier
steps as inputs, which a graph can compute as it likes, and some read and write beyond their buffers then
(DecoderMaskedMultiHeadAttention of ONNX Runtime 1.31 ends with SIGSEGV). A classifier that comes out of torch.onnx has
none of them; what the tools that people put behind it make of one is here.

Sources: ``onnxruntime.quantization`` (registry.py and operators/), ``onnxruntime.transformers`` (fusion_*.py), and what
``SessionOptions.optimized_model_filepath`` saves for a CPU. Light: the API process loads this file.
"""

# Static, dynamic and weight-only quantisation.
_QUANTIZED = {
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulBnb4",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MulInteger",
    "NhwcMaxPool",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearConv",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearReduceMean",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QLinearWhere",
    "QuantizeLinear",
}
# Fusions of convolutions, matrix products, activations, normalisations and attention.
_FUSED = {
    "Attention",
    "BiasAdd",
    "BiasGelu",
    "BiasSoftmax",
    "BiasSplitGelu",
    "FastGelu",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "FusedMatMulActivation",
    "Gelu",
    "GemmFastGelu",
    "GroupNorm",
    "MultiHeadAttention",
    "NhwcConv",
    "NhwcFusedConv",
    "QuickGelu",
    "SkipGroupNorm",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "TransposeMatMul",
}
RUNTIME_DOMAIN = "com.microsoft"
RUNTIME_OPERATORS = frozenset(_QUANTIZED | _FUSED)
