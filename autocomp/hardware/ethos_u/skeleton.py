"""A network as an int8 .tflite file without its values: what Vela's figures depend on, and nothing else.

Vela's estimate follows from shapes, from how operators are chained and from how well the weights compress; not from
biases, quantization parameters or activation functions. So a network of which only the `NetworkSpec` is known can be
compiled, in milliseconds and without a tracing framework: the weights come from whoever asks.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.hardware.ethos_u.pooling import pad_of
from autocomp.network import NETWORK_INPUT, KernelNode, LayerSpec, NetworkSpec
from autocomp.policy import Policy
from autocomp.tflite.builder import Affine, ModelBuilder, Padding, Tensor

#: int8 weights of a layer under a policy, (out, in / groups, *window).
WeightsOf = Callable[[LayerSpec, Policy], NDArray[np.int8]]
_ANY = Affine(0.02, -128)
_ANY_SCALE = 0.004
#: Ending of the name of what a pooling reads where it is padded.
PADDING = "_pad"


def skeleton(network: NetworkSpec, policy: Policy, weights_of: WeightsOf) -> bytes:
    """The file. The tensor that kernel i writes is called `tensor_name(i)`.

    UserError naming the kernel for what has no counterpart here: 1-D windows, grouped convolutions.
    """
    builder = ModelBuilder()
    results: dict[int, Tensor] = {NETWORK_INPUT: builder.input("input", _nhwc(network.input_shape), _ANY)}
    for index, node in enumerate(network.kernels):
        inputs = [results[source] for source in node.inputs]
        if node.op == "pad":
            border = pad_of(next(reader for reader in network.kernels if index in reader.inputs).kernel("int8"))
            results[index] = builder.pad(tensor_name(index), inputs[0], border.rows, border.columns)
        else:
            results[index] = _add(builder, network, policy, node, tensor_name(index), inputs, weights_of)
    return builder.finish([results[index] for index, node in enumerate(network.kernels) if node.output])


def tensor_name(kernel: int) -> str:
    """Of the result of kernel `kernel`."""
    return f"k{kernel}"


def kernel_of(tensor: str) -> int | None:
    """The kernel that Vela's operator with a result of that name belongs to; Vela names parts "k3_…"."""
    head = tensor.split("_")[0]
    return int(head[1:]) if head[:1] == "k" and head[1:].isdecimal() else None


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, shape[1], shape[2], shape[0]) if len(shape) == 3 else (1, *shape)


def _add(
    builder: ModelBuilder, network: NetworkSpec, policy: Policy, node: KernelNode, name: str, inputs: list[Tensor],
    weights_of: WeightsOf,
) -> Tensor:  # fmt: skip
    if node.layer is not None:
        layer = network.layer_by_name[node.layer]
        return _add_layer(builder, node, name, inputs[0], weights_of(layer, policy))
    if node.free:
        return builder.reshape(name, inputs[0], (1, node.out_channels.count(policy)))
    if node.op == "add":
        return builder.add(name, inputs[0], inputs[1], _ANY)
    if node.op == "mul":
        return builder.mul(name, inputs[0], inputs[1], _ANY)
    if node.op == "concat":
        return builder.concat(name, inputs)
    if node.op in ("max_pool", "avg_pool"):
        source = node.inputs[0]
        return _add_pooling(
            builder, node, name, inputs[0], padded=source != NETWORK_INPUT and network.kernels[source].op == "pad"
        )
    if node.op == "global_avg_pool":
        return builder.mean(name, inputs[0], _ANY)
    if node.op == "activation":
        return builder.elementwise(name, "RELU", inputs[0], _ANY)
    raise UserError(f"kernel {node.name}: {node.op} has no counterpart in a .tflite file here")


def _add_pooling(builder: ModelBuilder, node: KernelNode, name: str, x: Tensor, *, padded: bool) -> Tensor:
    """Padded as torch does it; where that is not SAME, by an operator of its own, unless the image is `padded`."""
    padding: Padding = "VALID" if padded else "SAME"
    border = pad_of(node.kernel("int8"))
    if border and not padded:
        x, padding = builder.pad(name + PADDING, x, border.rows, border.columns), "VALID"
    pool = builder.max_pool if node.op == "max_pool" else builder.avg_pool
    return pool(name, x, (node.kernel_h, node.kernel_w), (node.stride, node.stride), padding)


def _add_layer(builder: ModelBuilder, node: KernelNode, name: str, x: Tensor, weights: NDArray[np.int8]) -> Tensor:
    outputs = len(weights)
    scales, bias = np.full(outputs, _ANY_SCALE, np.float32), np.zeros(outputs, np.int32)
    stride = (node.stride, node.stride)
    if node.op == "linear":
        positions = int(np.prod(x.shape)) // weights.shape[1]
        if x.shape != (positions, weights.shape[1]):
            x = builder.reshape(f"{name}_in", x, (positions, weights.shape[1]))
        return builder.fully_connected(name, x, weights, scales, bias, _ANY)
    if weights.ndim != 4 or (node.groups > 1 and node.op != "depthwise"):
        raise UserError(f"layer {node.layer}: only dense and depthwise convolutions over two axes are expected here")
    if node.op == "depthwise":
        return builder.depthwise(name, x, weights.transpose(1, 2, 3, 0), scales, bias, _ANY, stride=stride)
    return builder.conv(name, x, weights.transpose(0, 2, 3, 1), scales, bias, _ANY, stride=stride)
