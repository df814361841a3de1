"""torch.onnx reads the source of five hundred functions for each export, a third of tracing a small network."""

from functools import cache
from typing import Any


def make_registry_once() -> None:
    """Let all exports of this process share one registry of the exporter's functions."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # a release that has it elsewhere: tests take longer
        return
    make = cache(ONNXRegistry.from_torchlib)

    def from_torchlib(cls: type, **options: Any) -> Any:
        return make(**options)

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)
