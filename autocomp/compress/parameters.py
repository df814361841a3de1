"""Stored tensors of an fx graph, and the arguments of the calls that read them."""

import itertools

import torch
from torch import fx, nn

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
EMBEDDINGS = (aten.embedding.default,)


def get_parameter(graph: nn.Module, path: str) -> torch.Tensor:
    value = graph
    for part in path.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def stored_tensor(graph: nn.Module, path: str) -> torch.Tensor | None:
    """What is stored at `path`; None for a submodule, which operators that take functions read."""
    try:
        return get_parameter(graph, path)
    except (AttributeError, AssertionError):
        return None


def set_parameter(graph: nn.Module, path: str, value: torch.Tensor) -> None:
    """Store a parameter at `path`; modules on the way that are missing are made."""
    owner, leaf = _owner(graph, path)
    if leaf in owner._buffers:
        del owner._buffers[leaf]
    setattr(owner, leaf, nn.Parameter(value.detach().clone()))


def set_buffer(graph: nn.Module, path: str, value: torch.Tensor) -> None:
    owner, leaf = _owner(graph, path)
    owner.register_buffer(leaf, value.detach().clone())


def move(graph: fx.GraphModule, path: str, new: str) -> None:
    """Store what is at `path` at `new` instead, and have its readers read it there."""
    value = get_parameter(graph, path)
    owner, leaf = _owner(graph, path)
    delattr(owner, leaf)
    (set_parameter if isinstance(value, nn.Parameter) else set_buffer)(graph, new, value)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target == path:
            node.target = new


def free_path(graph: nn.Module, path: str) -> str:
    """`path`, or the first of path_1, path_2, … at which nothing is stored."""
    return next(p for p in itertools.chain([path], (f"{path}_{i}" for i in itertools.count(1))) if not _taken(graph, p))


def drop_unread(graph: fx.GraphModule) -> None:
    """Delete the parameters and buffers that no node reads."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for prefix, module in graph.named_modules():
        for store in (module._parameters, module._buffers):
            for leaf in [name for name in store if (f"{prefix}.{name}" if prefix else name) not in read]:
                del store[leaf]


def _taken(graph: nn.Module, path: str) -> bool:
    value: object = graph
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _owner(graph: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, leaf = path.split(".")
    owner = graph
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    return owner, leaf


def is_stored(value: object) -> bool:
    """Whether an argument is a parameter or buffer."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def weight_path(node: fx.Node) -> str | None:
    """Path of the weight that a convolution or linear node reads, if it reads a stored one directly."""
    weight = node.args[1]
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def bias_path(node: fx.Node) -> str | None:
    """Path of the bias that a convolution or linear node reads, if it reads a stored one."""
    bias = argument(node, 2, "bias", None)
    return str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None


def argument(node: fx.Node, index: int, name: str, default: object) -> object:
    """Positional or keyword argument of an aten call."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def per_axis(value: object, axes: int) -> list[int]:
    """One number for each spatial axis of a window argument, which may be given once for all."""
    values = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return values * axes if len(values) == 1 else values


def pair(value: object, default: int = 1) -> tuple[int, int]:
    """(height, width) of a window argument; a 1-D window has height 1."""
    if value is None or value == []:
        return default, default
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]  # type: ignore[attr-defined]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])
