"""Which kernels an ONNX file comes to, as ONNX Runtime executes them."""

from pathlib import Path

from autocomp.hardware.onnx_kernels import executed_nodes
from autocomp.kernel import Kernel


def file_kernels(path: Path) -> list[tuple[Kernel, str]]:
    """The kernels that ONNX Runtime executes for one example of the model in `path`, in order, with their nodes' names.

    UserError where the file is no model that the runtime loads, or leaves a size open that is not the batch's.
    """
    return [
        (kernel, node.name or node.output[0])
        for node, kernels, _ in executed_nodes(path, str(path))
        for kernel in kernels
    ]
