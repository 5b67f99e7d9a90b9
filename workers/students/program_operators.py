"""Operators that an uploaded program may have, by their names in torch's exported graphs. Light: no torch.

Each is a function of tensors and numbers: none draws random numbers, makes tensors of its own, or reads anything else.
Batch normalisation and dropout are not among them, for they become modules (``workers.students.program_network``).
"""

BATCH_NORM = "torch.ops.aten.batch_norm.default"
DROPOUT_IN_PLACE = "torch.ops.aten.dropout_.default"
DROPOUTS = frozenset({"torch.ops.aten.dropout.default", DROPOUT_IN_PLACE})
ATTENTION = "torch.ops.aten.scaled_dot_product_attention.default"
SIZE = "torch.ops.aten.sym_size.int"
# On sizes of tensors.
MULTIPLY, DIVIDE = "_operator.mul", "_operator.floordiv"
ARITHMETIC = frozenset({"_operator.add", "_operator.sub", MULTIPLY, DIVIDE})
# Their outputs share memory with their first argument.
VIEWS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        *(
            "view.default",
            "reshape.default",
            "flatten.using_ints",
            "unflatten.int",
            "alias.default",
            "detach.default",
        ),
        *("permute.default", "transpose.int", "t.default", "expand.default", "expand_as.default", "contiguous.default"),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "select.int", "slice.Tensor"),
        *("split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int", "narrow.int"),
    )
)
IN_PLACE = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        *("relu_.default", "silu_.default", "hardswish_.default", "hardsigmoid_.default", "hardtanh_.default"),
        *("leaky_relu_.default", "elu_.default", "add_.Tensor", "sub_.Tensor", "mul_.Tensor", "div_.Tensor"),
        # Gives its tensor back, and takes the gradient from all that read it later.
        "detach_.default",
    )
)
_OTHERS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        *("conv2d.default", "conv2d.padding", "conv1d.default", "linear.default", "matmul.default", "bmm.default"),
        *("mm.default", "addmm.default", "layer_norm.default", "group_norm.default", "lift_fresh_copy.default"),
        *("relu.default", "gelu.default", "silu.default", "hardswish.default", "hardsigmoid.default", "elu.default"),
        *("hardtanh.default", "leaky_relu.default", "prelu.default", "mish.default", "softplus.default"),
        *("sigmoid.default", "tanh.default", "softmax.int", "exp.default", "sqrt.default", "rsqrt.default"),
        *("max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "mean.dim", "mean.default"),
        *(
            "sum.dim_IntList",
            "sum.default",
            "amax.default",
            "cat.default",
            "stack.default",
            "add.Tensor",
            "sub.Tensor",
            "mul.Tensor",
        ),
        *("div.Tensor", "rsub.Scalar", "pow.Tensor_Scalar", "neg.default", "abs.default", "clamp.default"),
        *("clamp_min.default", "minimum.default", "maximum.default", "clone.default", "roll.default", "pad.default"),
        *("constant_pad_nd.default", "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "pixel_shuffle.default"),
        *("index.Tensor", "repeat.default", "linalg_vector_norm.default"),
    )
)
# Checks that the export has written into the graph: the shapes are checked by running it.
ASSERTIONS = frozenset({"torch.ops.aten._assert_tensor_metadata.default", "torch.ops.aten._assert_scalar.default"})
OPERATORS = VIEWS | IN_PLACE | _OTHERS | {ATTENTION, SIZE} | ARITHMETIC
