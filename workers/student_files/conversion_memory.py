"""Memory and reads of a converted program: what writes where another value is read, what is read by nothing.

The interpreter (``workers.students.program_network``) copies where a view cannot be had, and its dropout writes to no
memory of others. So a program that writes to memory which it reads under another name could be trained as another
network, quietly.
"""

from collections.abc import Collection, Sequence, Set

from workers.errors import InvalidStudentFile
from workers.students.program import AnyNode, DropoutNode, Node, StochasticDepthNode, outputs_of, reads_of
from workers.students.program_operators import (
    ARITHMETIC,
    CREATORS,
    DETACH_IN_PLACE,
    EINSUM,
    IN_PLACE,
    SIZE,
    SURE_VIEWS,
    VIEWS,
)
from workers.texts import shortened


def without_unread(nodes: Sequence[AnyNode], output: str, folded: Set[str] = frozenset()) -> tuple[AnyNode, ...]:
    """The nodes without sizes and new tensors that nothing reads, which the export leaves behind with its checks.

    Args:
        folded: values that have become a part of another node, too, and may be read by none.

    Raises:
        InvalidStudentFile: nothing reads what another node gives, which is a mistake or made to waste memory.
    """
    read, kept = {output}, list[AnyNode]()
    for node in reversed(nodes):
        if read.isdisjoint(outputs_of(node)):
            op = node.op if isinstance(node, Node) else node.kind
            if op in ARITHMETIC or op == SIZE or op in CREATORS or not folded.isdisjoint(outputs_of(node)):
                continue
            # One that writes in place is of use without its output.
            if op not in IN_PLACE:
                raise InvalidStudentFile(
                    f"nothing reads {shortened(outputs_of(node)[0], 80)!r}, which {op!r} gives: leave out of the "
                    "network what its logits do not depend on"
                )
        read |= reads_of(node)
        kept.append(node)
    return tuple(kept[::-1])


def check_memory(
    nodes: Sequence[AnyNode], output: str, given: Collection[str], dropouts_in_place: Collection[str]
) -> None:
    """Refuse a node that writes to the pictures or the state, or to memory that is read later under another name.

    Where both names are views of what was made, for certain, the write is seen as it was exported.

    Args:
        given: values before the first node.
        dropouts_in_place: outputs of dropout that was exported as in place.

    Raises:
        InvalidStudentFile: naming the value and the operator.
    """
    # Sizes are the same before and after.
    readers = [(at, node) for at, node in enumerate(nodes) if not isinstance(node, Node) or node.op != SIZE]
    last_read = {name: at for at, node in readers for name in reads_of(node)}
    last_read[output] = len(nodes)
    # Values that were made where each one lies.
    places = {name: name for name in given}
    # Values that are one tensor: an operator in place gives the tensor that it writes to.
    tensors = {name: name for name in given}
    # Values that are where they were made for certain: a write to one is seen in all of them, as it was exported.
    certain = set(given)
    for at, node in enumerate(nodes):
        outputs, source = outputs_of(node), _source(node)
        is_dropped = not isinstance(node, Node) and node.output in dropouts_in_place
        in_place = isinstance(node, Node) and node.op in IN_PLACE
        if source is not None and (in_place or is_dropped):
            op = _operator(node)
            if places[source] in given:
                raise InvalidStudentFile(
                    f"the program writes to {shortened(source, 80)!r} by {op!r}: a student changes neither the "
                    "pictures nor its weights, buffers or constants while it computes"
                )
            is_certain = not is_dropped and op != DETACH_IN_PLACE and source in certain
            for name, place in places.items():
                is_other = is_dropped or not (tensors[name] == tensors[source] or (is_certain and name in certain))
                if is_other and last_read.get(name, -1) > at and place == places[source]:
                    raise InvalidStudentFile(
                        f"the program writes to {shortened(source, 80)!r} by {op!r}, and reads that memory as "
                        f"{shortened(name, 80)!r} afterwards: read the result of the operator, or take the one that "
                        "is not in place"
                    )
        is_view = isinstance(node, Node) and node.op in SURE_VIEWS | IN_PLACE and source in certain
        for name in outputs:
            certain.update([name] if source is None or is_dropped or is_view else [])
            tensors[name] = tensors[source] if in_place and source is not None else name
            places[name] = name if source is None or is_dropped else places[source]


def _operator(node: AnyNode) -> str:
    """Operator that a node which writes in place was exported as."""
    if isinstance(node, Node):
        return node.op
    return f"torch.ops.aten.{node.form}_.default" if isinstance(node, DropoutNode) else "torch.ops.aten.mul_.Tensor"


def _source(node: AnyNode) -> str | None:
    """Value whose memory the outputs of a node may have; None if they have memory of their own."""
    if isinstance(node, DropoutNode | StochasticDepthNode):
        return node.input  # in evaluation, its output is its input
    if not isinstance(node, Node) or node.op not in VIEWS | IN_PLACE | {EINSUM}:
        return None
    first = node.args[0]
    if node.op == EINSUM:
        operands = node.args[1]
        # More than one are multiplied, which takes memory of its own.
        first = operands[0] if isinstance(operands, list) and len(operands) == 1 else None
    return str(first["ref"]) if isinstance(first, dict) else None
