"""The integer arithmetic of x86 processors, and how ONNX Runtime is made to compute as every other device does.

Without VNNI, an x86 processor multiplies uint8 by int8 with VPMADDUBSW, which adds pairs of products in 16 bits and
saturates: 2 · 255 · 127 becomes 32,767. ONNX Runtime uses it by default. Two weights of magnitude 64 at most never
reach that bound; larger ones do, and a file then computes something else than on Arm, on an NPU, or with VNNI.
"""

from functools import cache

#: Session option, and its value, with which ONNX Runtime multiplies exactly on such a processor: it recodes int8
#: weights as uint8 while it loads a file. Elsewhere it changes nothing.
EXACT_OPTION = ("session.x64quantprecision", "1")
#: Largest magnitude of int8 weights whose products with uint8 never saturate: 2 · 255 · 64 < 2^15.
LARGEST_SAFE_LEVEL = 64
#: What is said beside the latencies of such a machine.
SATURATION_NOTE = (
    "uint8 weights, since this processor's products of uint8 and int8 saturate (x86 without VNNI): "
    "a stock session computes these files exactly"
)


@cache
def saturates() -> bool:
    """Whether a stock ONNX Runtime session on this machine saturates products of uint8 activations and int8 weights.

    The runtime is asked, not the processor's flags: one product of 64 terms of 255 · 127 tells.
    """
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    terms = 64
    weight = numpy_helper.from_array(np.full((terms, 16), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, terms])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.full((1, terms), 255, np.uint8)})
    return bool((product != terms * 255 * 127).any())


def loading_code(file: str) -> str:
    """Four lines of Python that load `file` so that it computes exactly on any processor."""
    name, value = EXACT_OPTION
    return (
        "import onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        f'options.add_session_config_entry("{name}", "{value}")\n'
        f'session = onnxruntime.InferenceSession("{file}", options)'
    )


if __name__ == "__main__":
    print("saturates" if saturates() else "exact")
