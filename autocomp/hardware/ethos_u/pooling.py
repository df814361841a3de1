"""Where a pooling takes a PAD of its own in a .tflite file, and what that costs an NPU."""

from dataclasses import replace

from autocomp.kernel import Kernel
from autocomp.network import NETWORK_INPUT, KernelNode, NetworkSpec
from autocomp.tflite.padding import Border, Window, pooling_border, same_border


def pad_of(kernel: Kernel) -> Border:
    """The border that a PAD puts around the image of a pooling; an empty one where SAME does, or nothing is needed.

    An average counts the zeros that a PAD adds, as torch does; those of SAME it leaves out.
    """
    if kernel.op not in ("max_pool", "avg_pool"):
        return Border()
    size = (kernel.height, kernel.width)
    window = Window((kernel.kernel_h, kernel.kernel_w), (kernel.stride, kernel.stride))
    border = pooling_border(size, window)
    return border if kernel.op == "avg_pool" or border != same_border(size, window) else Border()


def with_copies(network: NetworkSpec) -> NetworkSpec:
    """The network with a kernel "pad" wherever Vela copies an image to pad it for a pooling.

    As a rule, whatever computes the image writes it in between the zeros, which are all that is left to write. A
    concatenation, a tensor that others read too and the network's input stay as they are, and are copied. (Read off
    Vela 5.2.0: a pooling of 64 channels at 56×56 on a U55 takes 101,152 cycles more so, beside 95,586.)
    """
    kernels: list[KernelNode] = []
    moved = {NETWORK_INPUT: NETWORK_INPUT}
    for index, node in enumerate(network.kernels):
        node = replace(node, inputs=tuple(moved[source] for source in node.inputs))
        # An average's PAD becomes padding of a convolution, which the hardware does (Vela: `replace_pad_by_hw_pad`).
        if (
            node.op == "max_pool"
            and pad_of(node.kernel("int8"))
            and _is_copied(network, network.kernels[index].inputs[0])
        ):
            channels, source = node.in_channels, node.inputs[0]
            copy = KernelNode(
                f"{node.name}: padding", "pad", (source,), channels, channels, node.height, node.width, int8=True,
                keeps_range=True,
            )  # fmt: skip
            kernels.append(copy)
            node = replace(node, inputs=(len(kernels) - 1,))
        kernels.append(node)
        moved[index] = len(kernels) - 1
    return replace(network, kernels=tuple(kernels))


def _is_copied(network: NetworkSpec, source: int) -> bool:
    if source == NETWORK_INPUT:
        return True
    written = network.kernels[source]
    if written.op == "pad":
        return False
    readers = sum(source in node.inputs for node in network.kernels)
    return written.op == "concat" or written.free or written.output or readers > 1
