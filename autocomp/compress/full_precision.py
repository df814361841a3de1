"""A network computes in float32 wherever its code asks for another precision: what compression starts from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

#: Float types that are cast to float32.
OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
_CASTS = (torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double)
#: What Tensor.type takes instead of a dtype.
_TYPE_NAMES = ("torch.HalfTensor", "torch.BFloat16Tensor", "torch.DoubleTensor")


class _Float32(TorchFunctionMode):
    """Every request for a float type is one for float32. asked_for: the types that were requested, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for: dict[torch.dtype, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            self.asked_for[OTHER_FLOATS[_CASTS.index(func)]] = None
            return torch.Tensor.float(args[0])
        args = tuple(self._plain(value) for value in args)
        kwargs = {key: self._plain(value) for key, value in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        if isinstance(result, torch.dtype | torch.Size | int | float | bool):
            return result
        # A tensor of another type may still come from outside, as an array of float64 does.
        return pytree.tree_map_only(torch.Tensor, self._cast, result)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, str) and value in _TYPE_NAMES:
            value = OTHER_FLOATS[_TYPE_NAMES.index(value)]
        if isinstance(value, torch.dtype) and value in OTHER_FLOATS:
            self.asked_for[value] = None
            return torch.float32
        return value

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in OTHER_FLOATS:
            return tensor
        self.asked_for[tensor.dtype] = None
        return tensor.float()


@contextmanager
def in_float32() -> Iterator[_Float32]:
    """Inside, every tensor that torch makes is float32 where it would be of another float type.

    Regions of `torch.autocast` count for nothing, and the default type is float32. For one thread at a time: the
    former two are changed for the process.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    mode = _Float32()

    def enter(region: torch.autocast) -> torch.autocast:
        if region._enabled:
            mode.asked_for[region.fast_dtype] = None
        return region

    def leave(region: torch.autocast, *raised: object) -> None:
        """Nothing was entered."""

    try:
        with (
            mock.patch.object(torch.autocast, "__enter__", enter),
            mock.patch.object(torch.autocast, "__exit__", leave),
            mode,
        ):
            yield mode
    finally:
        torch.set_default_dtype(default)


def spelled(types: Iterable[torch.dtype]) -> str:
    """Names of float types as one reads them: "float16 and bfloat16"."""
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
