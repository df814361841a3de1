"""What a network computes, operator by operator: to name the one where two computations part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass
class Step:
    """An operator that a network called. module: path of the module whose code called it, "" for the network's own.

    outputs: its tensors as they were then. made, read: identities of the tensors that it returned and took.
    """

    operator: str
    module: str
    outputs: list[torch.Tensor]
    made: list[int]
    read: list[int]

    def __str__(self) -> str:
        return f"{self.operator} in {self.module or 'the forward of the network itself'}"


@dataclass
class _Recorder(TorchFunctionMode):
    stack: list[str]
    steps: list[Step] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return result
        made, read = _tensors(result), _tensors((args, kwargs))
        if made:
            self.alive += [*made, *read]  # an identity is one of a living tensor
            copies = [tensor.detach().clone() for tensor in made]
            where = self.stack[-1] if self.stack else ""
            self.steps.append(Step(name.strip("_"), where, copies, [id(t) for t in made], [id(t) for t in read]))
        return result


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def record(network: nn.Module, run: Callable[[], object]) -> list[Step]:
    """The operators that `run`, which calls `network`, executes until it ends or fails, in order."""
    stack: list[str] = []
    # Where it fails, what led there was asked for.
    with _followed(network, stack), suppress(Exception), _Recorder(stack) as recorder:
        run()
    return recorder.steps


@contextmanager
def _followed(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Inside, `stack` ends with the path of the module that is being called."""
    handles = []
    for path, part in network.named_modules():

        def enter(module: nn.Module, inputs: object, path: str = path) -> None:
            stack.append(path)

        def leave(module: nn.Module, inputs: object, output: object) -> None:
            stack.pop()

        handles.append(part.register_forward_pre_hook(enter, prepend=True))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_parting(
    one: Sequence[Step], other: Sequence[Step], same: Callable[[torch.Tensor, torch.Tensor], bool]
) -> Step | None:
    """The first operator of two runs of one network whose results are not the same, None where all are."""
    for a, b in zip(one, other, strict=False):
        if a.operator != b.operator or len(a.outputs) != len(b.outputs):
            return b
        if not all(same(x, y) for x, y in zip(a.outputs, b.outputs, strict=True)):
            return b
    longer = max(one, other, key=len)
    return longer[min(len(one), len(other))] if len(one) != len(other) else None


def first_missing(
    steps: Sequence[Step], values: Sequence[torch.Tensor], same: Callable[[torch.Tensor, torch.Tensor], bool]
) -> Step | None:
    """The first operator whose result is not among `values`, nor anything that was computed from it.

    values: what another form of the network computes, in which several operators may have become one.
    """
    by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for value in values:
        by_shape.setdefault(tuple(value.shape), []).append(value)
    present: set[int] = set()  # identities of tensors that are among the values, or lead to one that is
    culprit = None
    for step in reversed(steps):
        compared = [t for t in step.outputs if t.is_floating_point()]
        found = all(any(same(value, t) for value in by_shape.get(tuple(t.shape), [])) for t in compared)
        if found or present.intersection(step.made):
            present.update(step.read)
        else:
            culprit = step
    return culprit
