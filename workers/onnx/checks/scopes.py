"""Scopes of an ONNX model: the main graph, its functions and all subgraphs, each with its nodes and constants.

Every rule walks all of them, for external data or a custom operator hides in any. Only onnx and the standard library
are imported: the API process loads this.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto


class GraphScope(NamedTuple):
    """One graph, subgraph or function body.

    Attributes:
        tensors: in it, the halves of sparse ones among them.
        sparse: the sparse ones, which have a shape of their own.
        constants: the tensors that its nodes can name.
    """

    nodes: list[NodeProto]
    tensors: list[TensorProto]
    sparse: list[SparseTensorProto]
    constants: ChainMap[str, TensorProto]


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's values lie outside the file (external data), or it says where they would."""
    return tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)


def scopes_of(model: onnx.ModelProto) -> Iterator[GraphScope]:
    """Every function, the main graph, and the subgraphs of both, outer ones first."""
    pending: list[tuple[GraphProto, ChainMap[str, TensorProto]]] = [(model.graph, ChainMap())]
    for function in model.functions:
        scope = _scope(list(function.node), [], [], ChainMap(), defaults=function.attribute_proto)
        yield scope
        pending += [(graph, scope.constants) for graph in subgraphs(scope.nodes)]
    while pending:
        graph, outer = pending.pop()
        scope = _scope(list(graph.node), list(graph.initializer), list(graph.sparse_initializer), outer)
        yield scope
        pending += [(subgraph, scope.constants) for subgraph in subgraphs(scope.nodes)]


def _scope(
    nodes: list[NodeProto],
    tensors: list[TensorProto],
    sparse: list[SparseTensorProto],
    outer: ChainMap[str, TensorProto],
    *,
    defaults: Iterable[AttributeProto] = (),
) -> GraphScope:
    constants = {tensor.name: tensor for tensor in tensors}
    for node in nodes:
        found = list(_attribute_tensors(node.attribute))
        tensors += found
        sparse += _attribute_sparse(node.attribute)
        if node.op_type == "Constant" and found and node.output:
            constants[node.output[0]] = found[0]
    tensors += _attribute_tensors(defaults)
    sparse += _attribute_sparse(defaults)
    tensors += [half for pair in sparse for half in (pair.values, pair.indices)]
    return GraphScope(nodes, tensors, sparse, outer.new_child(constants))


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    # Every field is looked at, not the one of the declared type alone: the type is the file's own claim.
    for attribute in attributes:
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t


def _attribute_sparse(attributes: Iterable[AttributeProto]) -> Iterator[SparseTensorProto]:
    for attribute in attributes:
        yield from attribute.sparse_tensors
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor


def subgraphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Graphs among the attributes of these nodes, not those within them."""
    for node in nodes:
        yield from attribute_graphs(node.attribute)


def attribute_graphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    """Graphs among these attributes."""
    for attribute in attributes:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
