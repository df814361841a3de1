"""The graph that ONNX Runtime makes of a model, and the shapes of its tensors."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime

from autocomp.errors import UserError
from autocomp.hardware.runner import single_thread_options

#: Fusions of several kernels into one. Without them a kernel is found in the graph whatever stands beside it. The last
#: one needs a fixed batch, as files are read here but not run, and would keep integer kernels from being made.
_KEPT_APART = (
    "SkipLayerNormFusion", "EmbedLayerNormFusion", "AttentionFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion",
    "MatmulTransposeFusion", "MatMulAddFusion",
)  # fmt: skip
_INTEGERS = ("tensor(uint8)", "tensor(int8)")


class Tensor(NamedTuple):
    """What the runtime knows of a tensor. shape: None where an axis is open."""

    integer: bool
    shape: tuple[int, ...] | None


def optimized(model: bytes | Path, origin: str) -> tuple[onnx.GraphProto, dict[str, Tensor]]:
    """The graph that the runtime makes of the model for a batch of 1, and its tensors by name."""
    try:
        options = single_thread_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        given = onnx.load(model, load_external_data=False) if isinstance(model, Path) else onnx.load_from_string(model)
        for value in given.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    options.add_free_dimension_override_by_name(dim.dim_param, 1)
        source = str(model) if isinstance(model, Path) else model
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
            onnxruntime.InferenceSession(
                source, options, ["CPUExecutionProvider"], disabled_optimizers=list(_KEPT_APART)
            )
            optimized = onnx.load(options.optimized_model_filepath)
        # The optimized model carries no shapes, but the runtime tells those of every output that it is asked for.
        graph = optimized.graph
        asked = onnx.ModelProto()
        asked.CopyFrom(optimized)
        del asked.graph.output[:]
        asked.graph.output.extend(onnx.ValueInfoProto(name=n) for node in graph.node for n in node.output if n)
        plain = single_thread_options()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(asked.SerializeToString(), plain, ["CPUExecutionProvider"])
        found = [*session.get_inputs(), *session.get_outputs()]
        return graph, {t.name: Tensor(t.type in _INTEGERS, _fixed(t.shape)) for t in found}
    except OSError as error:
        raise UserError(f"{origin} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001  ONNX Runtime's and protobuf's own exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin}: ONNX Runtime does not load it as a model: {reason}") from None


def _fixed(shape: list[int | str | None]) -> tuple[int, ...] | None:
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None
