"""Which kernels a CUDA device runs in which precision, as far as a library is known to have them.

fp32 and tf32 are executed by ONNX Runtime's CUDA provider, as the files are; the others by torch, since no file is
written for them. Integer convolutions are missing on purpose: torch has none, and of the integer kernels that ONNX
Runtime makes of a quantized file (QLinearConv, QGemm, QLinearAdd) the CUDA provider has none.
"""

from collections.abc import Iterable
from dataclasses import replace

from autocomp.hardware.cuda.gpu import Capability
from autocomp.kernel import PRECISIONS, Kernel, Precision

#: Executed by ONNX Runtime.
BY_ONNX_RUNTIME: frozenset[Precision] = frozenset({"fp32", "tf32"})
#: The first compute capability with tensor cores for it (CUDA C++ Programming Guide, "Compute Capabilities").
_FIRST: dict[Precision, Capability] = {
    "fp32": (0, 0), "tf32": (8, 0), "fp16": (7, 0), "bf16": (8, 0), "fp16_2of4": (8, 0), "int8": (7, 5),
}  # fmt: skip
#: Operators that tensor cores execute. A depthwise convolution runs in fp16 and bf16, but TF32 is of no use to it.
_OPERATORS: dict[Precision, tuple[str, ...]] = {
    "tf32": ("conv", "linear"), "fp16": ("conv", "depthwise", "linear"), "bf16": ("conv", "depthwise", "linear"),
    "fp16_2of4": ("linear",), "int8": ("linear",),
}  # fmt: skip
#: torch._int_mm takes more than 16 rows, and multiples of 8 on the other sides.
INT8_POSITIONS_ABOVE, INT8_MULTIPLE = 16, 8
#: What the sides (outputs, inputs) of 2:4 weights in fp16 are multiples of in every back end of torch, and what the
#: number of positions that they are applied to is a multiple of where torch need not fill it up.
SPARSE_WEIGHTS, SPARSE_POSITIONS = (32, 64), 8


def refusal(kernel: Kernel, capability: Capability) -> str | None:
    """Why a device of that compute capability does not run `kernel` in its precision; None if it does."""
    precision, first = kernel.precision, _FIRST[kernel.precision]
    if capability < first:
        return f"{precision} needs compute capability {first[0]}.{first[1]}, got {capability[0]}.{capability[1]}"
    if precision == "fp32":
        return "nothing is quantized on it" if kernel.op in ("quantize", "dequantize") else None
    if kernel.op not in _OPERATORS[precision]:
        return f"there is no {precision} kernel for {kernel.op}"
    positions, out, into = kernel.height * kernel.width, kernel.out_channels, kernel.in_channels
    if precision == "int8" and (positions <= INT8_POSITIONS_ABOVE or out % INT8_MULTIPLE or into % INT8_MULTIPLE):
        return f"int8 takes more than {INT8_POSITIONS_ABOVE} positions and channels in multiples of {INT8_MULTIPLE}"
    if precision == "fp16_2of4":
        outputs, inputs = SPARSE_WEIGHTS
        if out % outputs or into % inputs or positions % SPARSE_POSITIONS:
            return f"2:4 takes multiples of {inputs} inputs, {outputs} outputs and {SPARSE_POSITIONS} positions"
    return None


def in_other_precisions(kernels: Iterable[Kernel], capability: Capability) -> list[Kernel]:
    """The same kernels in every precision but their own that the device runs them in."""
    found = [
        replace(kernel, precision=precision)
        for kernel in kernels
        if kernel.precision == "fp32"
        for precision in PRECISIONS
        if precision != "fp32"
    ]
    return [kernel for kernel in dict.fromkeys(found) if refusal(kernel, capability) is None]
