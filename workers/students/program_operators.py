"""Operators that an uploaded program may have, by their names in torch's exported graphs. Light: no torch.

Each is a function of tensors and numbers: none draws random numbers, starts anything or reads a file. ``CREATORS``
make tensors of given numbers; all outputs are bounded where they are computed (``workers.students.program_network``).
Batch normalisation, dropout and stochastic depth are not among them, for they become modules.
"""

from collections.abc import Iterable


def _aten(names: Iterable[str]) -> frozenset[str]:
    return frozenset(f"torch.ops.aten.{name}" for name in names)


BATCH_NORM = "torch.ops.aten.batch_norm.default"
# Their outputs are drawn in training. Channels as a whole, and so that mean and variance stay, are the other forms.
DROPOUT_FORMS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
DROPOUTS_IN_PLACE = _aten(f"{form}_.default" for form in DROPOUT_FORMS)
DROPOUTS = _aten(f"{form}.default" for form in DROPOUT_FORMS) | DROPOUTS_IN_PLACE
ATTENTION = "torch.ops.aten.scaled_dot_product_attention.default"
# Place and name of its rate of dropout among its arguments.
ATTENTION_RATE, ATTENTION_RATE_NAME = 4, "dropout_p"
SIZE = "torch.ops.aten.sym_size.int"
# On sizes of tensors.
MULTIPLY, DIVIDE = "_operator.mul", "_operator.floordiv"
ARITHMETIC = frozenset({"_operator.add", "_operator.sub", MULTIPLY, DIVIDE})
# Its output may share memory with what it reads, if that is one tensor.
EINSUM = "torch.ops.aten.einsum.default"
# Their outputs are always their first argument's memory.
SURE_VIEWS = _aten(
    [
        *("permute.default", "transpose.int", "t.default", "swapaxes.default", "movedim.int", "alias.default"),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "select.int", "slice.Tensor"),
        *("split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int", "narrow.default"),
    ]
)
# Their outputs may share memory with their first argument.
VIEWS = SURE_VIEWS | _aten(
    [
        *("view.default", "reshape.default", "reshape_as.default", "view_as.default", "flatten.using_ints"),
        *("unflatten.int", "detach.default", "expand.default", "expand_as.default", "contiguous.default"),
        *("to.dtype", "to.device", "type_as.default"),
    ]
)
# Takes the gradient from all that read its tensor later.
DETACH_IN_PLACE = "torch.ops.aten.detach_.default"
# Their outputs are their first argument.
IN_PLACE = _aten(
    [
        *("relu_.default", "silu_.default", "hardswish_.default", "hardsigmoid_.default", "hardtanh_.default"),
        *(
            "leaky_relu_.default",
            "elu_.default",
            "relu6_.default",
            "mish_.default",
            "sigmoid_.default",
            "tanh_.default",
        ),
        *("add_.Tensor", "sub_.Tensor", "mul_.Tensor", "div_.Tensor", "clamp_.default"),
        *("fill_.Scalar", "zero_.default", "copy_.default"),
    ]
) | {DETACH_IN_PLACE}
# Of sizes and numbers alone; those of the first kind are given a device.
CREATORS_ANYWHERE = _aten(
    [
        *("arange.default", "arange.start", "arange.start_step", "linspace.default", "zeros.default", "ones.default"),
        *("full.default", "scalar_tensor.default"),
    ]
)
CREATORS = CREATORS_ANYWHERE | _aten(
    [
        *("new_zeros.default", "new_ones.default", "new_full.default", "zeros_like.default", "ones_like.default"),
        "full_like.default",
    ]
)
_OTHERS = _aten(
    [
        *("conv2d.default", "conv2d.padding", "conv1d.default", "conv1d.padding", "conv_transpose2d.input"),
        *("linear.default", "matmul.default", "bmm.default", "mm.default", "addmm.default"),
        *("layer_norm.default", "group_norm.default", "rms_norm.default", "lift_fresh_copy.default"),
        *("relu.default", "gelu.default", "silu.default", "hardswish.default", "hardsigmoid.default", "elu.default"),
        *(
            "hardtanh.default",
            "leaky_relu.default",
            "prelu.default",
            "mish.default",
            "softplus.default",
            "relu6.default",
        ),
        *("selu.default", "celu.default", "glu.default", "log_sigmoid.default", "erf.default"),
        *("sigmoid.default", "tanh.default", "softmax.int", "log_softmax.int", "exp.default", "log.default"),
        *("sqrt.default", "rsqrt.default", "square.default", "sin.default", "cos.default"),
        *("max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "adaptive_max_pool2d.default"),
        *("adaptive_avg_pool1d.default", "mean.dim", "mean.default", "sum.dim_IntList", "sum.default"),
        *("amax.default", "amin.default", "var.correction", "std.correction", "cumsum.default"),
        *("linalg_vector_norm.default", "cat.default", "stack.default", "repeat.default", "repeat_interleave.self_int"),
        *("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "div.Tensor_mode", "rsub.Scalar", "addcmul.default"),
        *("pow.Tensor_Scalar", "pow.Scalar", "pow.Tensor_Tensor", "neg.default", "abs.default", "reciprocal.default"),
        *("clamp.default", "clamp_min.default", "clamp_max.default", "minimum.default", "maximum.default"),
        *("floor.default", "floor_divide.default", "remainder.Scalar"),
        *("eq.Scalar", "ne.Scalar", "lt.Scalar", "le.Scalar", "gt.Scalar", "ge.Scalar", "eq.Tensor", "ne.Tensor"),
        *("lt.Tensor", "le.Tensor", "gt.Tensor", "ge.Tensor", "logical_not.default", "logical_and.default"),
        *("bitwise_not.default", "masked_fill.Scalar", "where.self", "where.ScalarOther", "where.ScalarSelf"),
        *("tril.default", "triu.default", "clone.default", "roll.default", "flip.default", "pad.default"),
        *("constant_pad_nd.default", "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec"),
        *("pixel_shuffle.default", "pixel_unshuffle.default", "channel_shuffle.default"),
        *("index.Tensor", "index_select.default", "gather.default", "embedding.default"),
    ]
)
# Operators whose number is a size, beside those that take a list of sizes.
SIZED = _aten(["slice.Tensor", "narrow.default", "split.Tensor", "unflatten.int", "repeat_interleave.self_int"])
# Checks that the export has written into the graph: the shapes are checked by running it.
ASSERTIONS = _aten(["_assert_tensor_metadata.default", "_assert_scalar.default"])
OPERATORS = VIEWS | IN_PLACE | CREATORS | _OTHERS | {ATTENTION, EINSUM, SIZE} | ARITHMETIC
# Arguments of these types are objects in the safe form: {"dtype": NAME}, and {"device": "pictures"}.
DTYPES = ("float32", "int64", "int32", "bool")
