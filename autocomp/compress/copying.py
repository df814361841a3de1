"""A copy of a network that shares no state with the user's, whatever the network holds."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from autocomp.errors import UserError


def copied(module: nn.Module) -> nn.Module:
    """A deep copy of `module` without what `torch.compile`, data-parallel training and averaging put around it.

    Tensors that are results of a computation, which `copy.deepcopy` refuses, are copied as values: the masked weight
    of `torch.nn.utils.prune`, an activation that a module keeps. Attributes that cannot be copied at all (locks,
    open files) are shared with the original.
    """
    memo: dict[int, Any] = {}
    keep: list[torch.Tensor] = []
    for part in module.modules():
        for value in vars(part).values():
            for tensor in _tensors(value):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
                    keep.append(tensor)
    try:
        return _deep_copy(module, dict(memo))
    except UserError:
        raise
    except Exception:  # noqa: BLE001 what may be raised is up to what the network holds
        return _copy_by_parts(module, memo)


def inside(module: nn.Module) -> nn.Module:
    """The network within wrappers that leave its answers as they are.

    Raises UserError where a wrapper has hooks, which would be lost with it.
    """
    while (inner := _wrapped(module)) is not None:
        if module._forward_hooks or module._forward_pre_hooks:
            raise UserError(
                f"the network's wrapper {type(module).__name__} has forward hooks: register them on the network "
                "inside, or hand that over"
            )
        module = inner
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    # By name: importing the compiler or optimizers to ask for their classes takes seconds.
    kept_as = {"OptimizedModule": "_orig_mod", "AveragedModel": "module"}.get(type(module).__name__)
    return module._modules.get(kept_as) if kept_as and type(module).__module__.startswith("torch.") else None


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for part in module.modules():
        inner = inside(part)
        if inner is not part and id(part) not in memo:
            memo[id(part)] = copy.deepcopy(inner, memo)
    twin = copy.deepcopy(inside(module), memo)
    assert isinstance(twin, nn.Module)
    return twin


def _copy_by_parts(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy attribute by attribute, sharing those that cannot be copied."""
    parts = list(module.modules())
    for part in parts:
        if inside(part) is part:
            if isinstance(part, fx.GraphModule):
                memo[id(part)] = copy.deepcopy(part, memo)
            else:
                memo[id(part)] = type(part).__new__(type(part))
    for part in parts:
        memo[id(part)] = memo[id(inside(part))]
    for part in parts:
        if inside(part) is part and not isinstance(part, fx.GraphModule):
            for key, value in vars(part).items():
                try:
                    twin = copy.deepcopy(value, memo)
                except Exception:  # noqa: BLE001
                    twin = value
                memo[id(part)].__dict__[key] = twin
    return memo[id(module)]


def _tensors(value: object, depth: int = 3) -> Iterator[torch.Tensor]:
    """Tensors that an attribute holds, in containers too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth - 1)
