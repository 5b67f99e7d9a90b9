"""Network of an uploaded program: interprets its graph, with modules for batch normalisation and what is random."""

import functools
import operator
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workers.errors import InvalidJob
from workers.students.program import (
    CONSTANT,
    AnyNode,
    Node,
    NormNode,
    Program,
    StochasticDepthNode,
    outputs_of,
    read_program,
    reads_of,
)
from workers.students.program_modules import FormOfDropout, StochasticDepth, attend
from workers.students.program_operators import ARITHMETIC, ATTENTION, DTYPES, OPERATORS, SIZE
from workers.texts import shortened

_VIEW = "torch.ops.aten.view.default"
# No identifier, so no value of a program.
_DEVICE = "@device"
# Sizes beyond it are no sizes; without a bound, products of products would keep the process busy for hours.
_SIZE_MAX = 1 << 31
# Values of one output for each picture: so many times the picture's, or so many if that is more; and the state's.
_FACTOR, _VALUES = 256, 1 << 20


def build_program(name: str, path: Path, classes: int, *, in_channels: int, image_side: int) -> nn.Module:
    """The network of a file that was made of an upload, with the weights that lie in it.

    Args:
        name: of the student, for messages.
        classes, in_channels, image_side: as of ``build_student``; the program keeps its own.

    Raises:
        InvalidJob: it was exported for others, or the file is damaged.
    """
    program = read_program(path)
    program.check_input(name, classes, in_channels, image_side)
    try:
        with safe_open(path, framework="pt") as file:
            # The file lies on no other device than the CPU, whatever the default is.
            network = ProgramNetwork(program, file.get_tensor)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidJob(f"the program of student {name!r} cannot be built: {error}") from error
    return network


class ProgramNetwork(nn.Module):
    """Interpreter of a program. Its state has the names that the exported network's had.

    Args:
        program: whose operators are in the list of those that are allowed.
        tensor_of: a stored tensor by its name.

    Raises:
        ValueError, KeyError: an operator, a name or a shape that cannot be.
    """

    def __init__(self, program: Program, tensor_of: Callable[[str], Tensor]) -> None:
        super().__init__()
        # Before the state: a tensor that is called as one of these is refused then (KeyError).
        self._program = program
        self._calls: list[Callable[[dict[str, Any]], None]] = []
        self._dead = _last_uses(program)
        self._outputs = [outputs_of(node) for node in program.nodes]
        # Value, module and name in it: normalisations have their own. Looked up at each call, for they may be swapped.
        read = {program.output}.union(*map(reads_of, program.nodes))
        state = [*program.parameters.items(), *program.buffers.items()]
        self._read_state = [(value, *name.rpartition(".")[::2]) for value, name in state if value in read]
        self._state_values = 0
        self._norms: dict[str, nn.BatchNorm1d | nn.BatchNorm2d] = {}
        norms = {node.module: node for node in program.nodes if isinstance(node, NormNode)}
        for name, norm_node in norms.items():
            self._norms[name] = self._add_norm(name, norm_node, tensor_of)
        of_norms = {f"{name}.{part}" for name, norm in self._norms.items() for part in norm.state_dict()}
        for state_name in (*program.parameters.values(), *program.buffers.values()):
            if state_name not in of_norms:
                value = tensor_of(state_name).clone()
                is_parameter = state_name in program.parameters.values()
                self._add_state(state_name, nn.Parameter(value) if is_parameter else value)
        for place, stored in enumerate(program.constants.values()):
            self.register_buffer(f"_constant_{place}", tensor_of(CONSTANT + stored).clone(), persistent=False)
        for place, node in enumerate(program.nodes):
            self._calls.append(self._call_of(place, node))
        self._state_values = sum(x.numel() for x in (*self.parameters(), *self.buffers()))

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """Logits [B, C].

        Raises:
            InvalidJob: a size or an output is larger than any that a network needs.
        """
        values: dict[str, Any] = {self._program.input: x_BKHW}
        for value, folder, last in self._read_state:
            values[value] = getattr(self.get_submodule(folder), last)
        for place, value in enumerate(self._program.constants):
            values[value] = getattr(self, f"_constant_{place}")
        values[_DEVICE] = x_BKHW.device
        values_max = x_BKHW.shape[0] * max(_FACTOR * prod(x_BKHW.shape[1:]), _VALUES) + self._state_values
        for call, outputs, dead in zip(self._calls, self._outputs, self._dead, strict=True):
            call(values)
            # Where it is traced for an export, sizes are no integers, and no memory is used.
            if type(values_max) is int:
                _check_sizes(outputs, values, values_max)
            for name in dead:
                values.pop(name, None)
        logits: Tensor = values[self._program.output]
        return logits

    def _folder(self, name: str) -> tuple[nn.Module, str]:
        """Module that holds a name of the state, made where it is not there yet, and the last part of the name."""
        *folders, last = name.split(".")
        holder: nn.Module = self
        for folder in folders:
            if folder not in holder._modules:
                holder.add_module(folder, nn.Module())
            holder = holder.get_submodule(folder)
        return holder, last

    def _add_state(self, name: str, value: Tensor) -> None:
        holder, last = self._folder(name)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(last, value)
        else:
            holder.register_buffer(last, value)

    def _add_norm(
        self, name: str, node: NormNode, tensor_of: Callable[[str], Tensor]
    ) -> nn.BatchNorm1d | nn.BatchNorm2d:
        holder, last = self._folder(name)
        features = tensor_of(f"{name}.running_mean").numel()
        kind = nn.BatchNorm2d if node.dims == 2 else nn.BatchNorm1d
        norm = kind(features, eps=node.eps, momentum=node.momentum, affine=node.affine)
        with torch.no_grad():
            for part, value in norm.state_dict().items():
                stored = tensor_of(f"{name}.{part}")
                if stored.shape != value.shape:
                    raise ValueError(f"{name}.{part} is {list(stored.shape)}, of {features} features")
                value.copy_(stored)
        holder.add_module(last, norm)
        return norm

    def _call_of(self, place: int, node: AnyNode) -> Callable[[dict[str, Any]], None]:
        if isinstance(node, Node):
            return _operator_call(node, functools.partial(attend, self) if node.op == ATTENTION else None)
        if isinstance(node, StochasticDepthNode):
            return self._depth_call(place, node)
        module: nn.Module
        if isinstance(node, NormNode):
            module = self._norms[node.module]
        else:
            module = nn.Dropout(node.p) if node.form == "dropout" else FormOfDropout(node)
            self.add_module(f"_dropout_{place}", module)

        def call(values: dict[str, Any]) -> None:
            values[node.output] = module(values[node.input])

        return call

    def _depth_call(self, place: int, node: StochasticDepthNode) -> Callable[[dict[str, Any]], None]:
        module = StochasticDepth(node)
        self.add_module(f"_depth_{place}", module)
        shape = None if node.shape is None else list(node.shape)

        def call(values: dict[str, Any]) -> None:
            values[node.output] = module(values[node.input], _resolved(shape, values))

        return call


def _last_uses(program: Program) -> list[tuple[str, ...]]:
    """Names of the values that no node after each one reads: their memory is free then."""
    seen, dead = {program.output}, list[tuple[str, ...]]()
    for node in reversed(program.nodes):
        read = reads_of(node)
        dead.append(tuple(read - seen))
        seen |= read
    return dead[::-1]


def _operator_call(node: Node, given: Callable[..., Any] | None) -> Callable[[dict[str, Any]], None]:
    """Function that computes the outputs of a node from the values before it, by ``given`` or its own function.

    Raises:
        ValueError: the operator is not allowed.
    """
    if node.op not in OPERATORS:
        raise ValueError(f"operator {node.op!r} is not allowed")
    function: Callable[..., Any] = given or _function(node.op)

    def call(values: dict[str, Any]) -> None:
        args = [_resolved(value, values) for value in node.args]
        kwargs = {name: _resolved(value, values) for name, value in node.kwargs.items()}
        found = function(*args, **kwargs)
        if len(node.outputs) == 1:
            found = (found,)
        for names, value in zip(node.outputs, found, strict=True):
            if isinstance(names, str):
                values[names] = value
            else:
                values.update(zip(names, value, strict=True))

    return call


def _function(op: str) -> Callable[..., Any]:
    if op in ARITHMETIC:
        return functools.partial(_compute, getattr(operator, op.rpartition(".")[2]))
    if op == SIZE:
        return lambda value, dim: value.shape[dim]
    if op == _VIEW:
        # Pictures of another memory layout than the export's cannot always be seen in that shape without a copy.
        return torch.ops.aten.reshape.default
    _, _, namespace, packet, overload = op.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return found


def _compute(function: Callable[[Any, Any], Any], one: object, other: object) -> object:
    """Result of arithmetic of two sizes. Raises InvalidJob."""
    # Not only int: while the network is exported they are symbols or tensors. Lists would be repeated by a product.
    for value in (one, other):
        if isinstance(value, bool | float | str | list | tuple | NoneType):
            raise InvalidJob(f"an uploaded program computes a size of {shortened(value, 40)!r}, which is no integer")
    try:
        result: object = function(one, other)
    except ZeroDivisionError:
        raise InvalidJob(f"an uploaded program divides the size {one} by zero") from None
    if isinstance(result, int) and abs(result) > _SIZE_MAX:
        raise InvalidJob(
            f"an uploaded program computes a size beyond {_SIZE_MAX} ({function.__name__} of {one} and {other}): no "
            "tensor has such a one"
        )
    return result


def _check_sizes(outputs: Sequence[str], values: dict[str, Any], values_max: int) -> None:
    """Raises InvalidJob if a tensor of these, which a node has given, has more values than ``values_max``."""
    for name in outputs:
        value = values.get(name)
        if isinstance(value, Tensor) and value.numel() > values_max:
            raise InvalidJob(
                f"an uploaded program's value {shortened(name, 80)!r} has the shape {list(value.shape)}: for each "
                f"picture at most {_FACTOR} times its values are taken, or {_VALUES} if that is more"
            )


def _resolved(value: JsonValue, values: dict[str, Any]) -> object:
    """Argument with the values that it refers to."""
    if not isinstance(value, dict):
        return [_resolved(each, values) for each in value] if isinstance(value, list) else value
    if "dtype" in value:
        return getattr(torch, next(name for name in DTYPES if name == value["dtype"]))
    return values[_DEVICE] if "device" in value else values[str(value["ref"])]
