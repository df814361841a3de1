"""Each kernel model executes its kernel exactly as often as asked, and nothing else grows with it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from autocomp.hardware.kernel_models import EXECUTED_AS, kernel_model, max_repeats
from autocomp.hardware.runner import input_values, keeps_blocks
from autocomp.kernel import Kernel, Precision

SHAPES = {
    "conv3x3": Kernel("conv", "fp32", 24, 40, 16, 16, 3, 3),
    "conv3x3_odd_stride2": Kernel("conv", "fp32", 13, 21, 15, 16, 3, 3, 2),
    "conv1x1_odd": Kernel("conv", "fp32", 37, 53, 8, 8),
    "first_layer": Kernel("conv", "fp32", 3, 32, 32, 32, 3, 3, 2),
    "grouped": Kernel("conv", "fp32", 32, 64, 8, 8, 3, 3, 1, 4),
    "signal": Kernel("conv", "fp32", 12, 20, 1, 128, 1, 5),
    "single_position": Kernel("conv", "fp32", 32, 8, 1, 1),
    "depthwise": Kernel("depthwise", "fp32", 48, 48, 16, 16, 3, 3, 1, 48),
    "depthwise_odd_stride2": Kernel("depthwise", "fp32", 29, 29, 16, 16, 5, 5, 2, 29),
    "linear": Kernel("linear", "fp32", 65, 10, 1, 1),
    "linear_tokens": Kernel("linear", "fp32", 48, 96, 1, 17),
    "add": Kernel("add", "fp32", 21, 21, 8, 8),
    "mul": Kernel("mul", "fp32", 24, 24, 8, 8),
    "concat_odd": Kernel("concat", "fp32", 33, 33, 8, 8),
    # Pooling over whole blocks of channels is executed in blocks: 20 channels are no block of 8 (AVX2) nor of 16.
    "max_pool_stride2": Kernel("max_pool", "fp32", 20, 20, 16, 16, 3, 3, 2),
    "max_pool_2x2": Kernel("max_pool", "fp32", 20, 20, 16, 16, 2, 2, 2),
    "max_pool": Kernel("max_pool", "fp32", 20, 20, 16, 16, 3, 3),
    "avg_pool": Kernel("avg_pool", "fp32", 20, 20, 16, 16, 2, 2, 2),
    "global_avg_pool": Kernel("global_avg_pool", "fp32", 40, 40, 7, 7),
    "activation": Kernel("activation", "fp32", 24, 24, 8, 8),
    "quantize": Kernel("quantize", "fp32", 24, 24, 8, 8),
    "dequantize": Kernel("dequantize", "fp32", 24, 24, 8, 8),
    "dequantize_vector": Kernel("dequantize", "fp32", 24, 24, 1, 1),
}


def _executed(kernel: Kernel, repeats: int, folder: Path, *, blocked: bool = False) -> Counter[str]:
    """How often each operator stands in the graph that ONNX Runtime executes; also runs it once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # the warning that a level-3 graph fits this machine only
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        kernel_model(kernel, repeats, blocked=blocked), options, ["CPUExecutionProvider"]
    )
    first = session.get_outputs()[0].name
    (source,) = session.get_inputs()
    result = session.run([first], {"x": input_values(source.type, source.shape)})[0]
    assert np.asarray(result).size in (kernel.out_elements, kernel.out_channels * kernel.height * kernel.width)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", SHAPES)
def test_exactly_the_asked_number_of_kernels_is_executed(name: str, precision: Precision, tmp_path: Path) -> None:
    shape = SHAPES[name]
    kernel = Kernel(shape.op, precision, *(getattr(shape, f) for f in Kernel.__slots__[2:]))
    limit = max_repeats(kernel)
    few, many = (1, 2) if limit is not None and limit < 5 else (2, 5)
    before, after = _executed(kernel, few, tmp_path), _executed(kernel, many, tmp_path)
    kinds = EXECUTED_AS[kernel.op, kernel.precision]
    grown = after - before
    assert sum(grown[kind] for kind in kinds) == many - few, (before, after)
    assert sum(after[kind] for kind in kinds) == many
    others = {kind: count for kind, count in grown.items() if kind not in kinds}
    allowed = {"Transpose"} if kernel.op in ("quantize", "dequantize") else set()
    if kernel.op == "global_avg_pool":
        allowed = {"ReorderOutput"}
    if kernel.op == "linear" and kernel.height * kernel.width > 1:
        allowed = {"Add", "QLinearAdd", "Reshape"}
    assert set(others) <= allowed, (before, after)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pooling_over_whole_blocks_is_built_for_the_layout_of_the_runtime_at_hand(op: str, tmp_path: Path) -> None:
    """48 channels are whole blocks of 8 and of 16: no copy reorders its result, whichever the processor has."""
    blocked = keeps_blocks(kernel_model(Kernel("conv", "fp32", 32, 32, 16, 16)))
    kernel = Kernel(op, "fp32", 48, 48, 16, 16, 3, 3)
    (name,) = EXECUTED_AS[op, "fp32"]
    few, many = (_executed(kernel, repeats, tmp_path, blocked=blocked) for repeats in (2, 5))
    assert many[name] == 5
    assert many - few == Counter({name: 3})
