"""What Vela says about the kernels of a network, and about the weights of one kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import RunError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.compiler import Compiled, Vela
from autocomp.hardware.ethos_u.performance import OperatorEstimate
from autocomp.hardware.ethos_u.skeleton import PADDING, WeightsOf, kernel_of, skeleton
from autocomp.kernel import Kernel
from autocomp.network import NETWORK_INPUT, Channels, KernelNode, LayerSpec, NetworkSpec
from autocomp.policy import Policy

#: Vela's operators with weights.
_LAYERS = ("Conv2D", "DepthwiseConv2D", "FullyConnected")


@dataclass(frozen=True, slots=True)
class Cycles:
    """Of one kernel: in all, and of the array, the feature-map memories and the weight memory."""

    total: int
    array: int
    memory: int
    weights: int


def observe(
    network: NetworkSpec, policy: Policy, weights_of: WeightsOf, vela: Vela, accelerator: Accelerator, folder: Path
) -> tuple[Compiled, dict[int, Cycles]]:
    """Compile a network without values: what Vela says of the whole, and of each of its kernels by index.

    network: with its copies as kernels (`pooling.with_copies`).
    A kernel that Vela fuses into another takes no cycles. RunError where an operator is left to the CPU.
    """
    path = folder / "network.tflite"
    path.write_bytes(skeleton(network, policy, weights_of))
    compiled = vela.compile(path, folder, accelerator)
    if compiled.fallbacks:
        left, reason = compiled.fallbacks[0]
        raise RunError(f"{network.name}: {left} is left to the CPU: {reason}")
    found: dict[int, list[OperatorEstimate]] = {
        index: [] for index, node in enumerate(network.kernels) if not node.free
    }
    for operator, index in zip(compiled.operators, _attributed(network, policy, compiled.operators), strict=True):
        if index is not None:
            found[index].append(operator)
    return compiled, {index: _sum(operators) for index, operators in found.items()}


def encoded_bytes(kernel: Kernel, weights: NDArray[np.int8], vela: Vela, accelerator: Accelerator, folder: Path) -> int:
    """Bytes that the weights, (out, in / groups, kernel_h, kernel_w), of `kernel` take in a compiled file."""
    layer = LayerSpec(
        "layer", kernel.op, weights.shape, Channels(((None, kernel.in_channels),)),
        Channels(((None, kernel.out_channels),)), 1, depthwise=kernel.op == "depthwise",
    )  # fmt: skip
    node = KernelNode(
        "layer", kernel.op, (NETWORK_INPUT,), layer.in_channels, layer.out_channels, kernel.height, kernel.width,
        kernel.kernel_h, kernel.kernel_w, kernel.stride, kernel.groups, "layer", output=True,
    )  # fmt: skip
    linear = kernel.op == "linear"
    shape = (kernel.in_channels,) if linear else (kernel.in_channels, kernel.height, kernel.width)
    path = folder / "layer.tflite"
    path.write_bytes(skeleton(NetworkSpec("layer", shape, (layer,), (), (node,)), Policy(), lambda *_: weights))
    return vela.compile(path, folder, accelerator).encoded_weight_bytes


def _attributed(network: NetworkSpec, policy: Policy, operators: Sequence[OperatorEstimate]) -> list[int | None]:
    """The kernel of each operator.

    A layer that writes into a concatenation is named after it; its MACs tell which. Whatever writes into an image that
    is padded for a pooling is named after the PAD. Of the operators of a PAD, those that write zeros are the pooling's.
    """
    taken: set[int] = set()
    found: list[int | None] = []
    for operator in operators:
        index = _named(operator, network, policy)
        if index is not None and operator.operator in _LAYERS and network.kernels[index].layer is None:
            writers = [s for s in network.kernels[index].inputs if s not in taken and network.kernels[s].layer]
            if operator.macs and writers:
                index = min(writers, key=lambda s: abs(np.log(_macs(network.kernels[s], policy) / operator.macs)))
                taken.add(index)
        found.append(index)
    return found


def _named(operator: OperatorEstimate, network: NetworkSpec, policy: Policy) -> int | None:
    """The kernel that an operator's name speaks of, or the one beside it where a PAD lent its name."""
    index = kernel_of(operator.name)
    if index is None:
        return None
    node = network.kernels[index]
    if operator.name.endswith(PADDING) and operator.operator != "Pad":
        return node.inputs[0]
    # Vela counts one operation for each value that is copied.
    if node.op == "pad" and operator.macs < node.kernel("int8", policy).in_elements:
        return next(reader for reader, other in enumerate(network.kernels) if index in other.inputs)
    return index


def _macs(node: KernelNode, policy: Policy) -> float:
    """As Vela counts them: without those that 2:4 leaves out."""
    assert node.layer is not None
    return node.kernel("int8", policy).macs * (0.5 if policy.layer(node.layer).pattern == "2:4" else 1.0)


def _sum(operators: Sequence[OperatorEstimate]) -> Cycles:
    return Cycles(
        sum(operator.cycles for operator in operators),
        sum(operator.npu_cycles for operator in operators),
        sum(operator.sram_cycles for operator in operators),
        sum(operator.dram_cycles + operator.flash_cycles for operator in operators),
    )
