"""A pruned network with quantizers in it: trained as a torch module, handed on as plain integer arrays."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from autocomp.compress.cluster import Codebook
from autocomp.compress.graph import argument, aten, get_parameter
from autocomp.compress.prune import check_policy, prune
from autocomp.compress.quantize import (
    ActivationQuantizer,
    TensorRange,
    WeightQuantizer,
    activation_range,
)
from autocomp.compress.stored import bias_levels, expanded_scales
from autocomp.compress.trace import Traced
from autocomp.network import NETWORK_INPUT, Execution, NetworkSpec, plan_execution
from autocomp.policy import Policy

#: What integer runtimes have tabulated for one range of results alone (TFLite's 8-bit quantization specification).
FIXED_RANGES = {aten.sigmoid.default: TensorRange(1 / 256, 0), aten.tanh.default: TensorRange(1 / 128, 128)}


@dataclass(frozen=True)
class LayerWeights:
    """One layer as the file holds it.

    weight: float32 (out, in / groups, …), zeros where pruned; for a quantized layer exactly what its integers stand
    for. levels: int8 of the same shape, or None for a float layer. base, ratios: the scale of output channel c is
    base * ratios[c] ** 4. mask: True where a weight is kept, None if all are. bias: float32 (out,). bias_levels: int32
    (out,), the bias in units of input scale × weight scale; None where it is added in float. exact_bias: the file
    holds these to the unit, not as float16. codebook: int8 levels, ascending, of which every weight that is kept has
    one; a power of two of them, some of which may be alike. None where a layer is not clustered.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    bits: int | None = None
    integer: bool = False
    levels: NDArray[np.int8] | None = None
    base: np.float32 = np.float32(1)  # noqa: RUF009  (a number, and immutable)
    ratios: NDArray[np.float16] | None = None
    mask: NDArray[np.bool_] | None = None
    codebook: NDArray[np.int8] | None = None
    bias_levels: NDArray[np.int32] | None = None
    exact_bias: bool = False

    @property
    def scales(self) -> NDArray[np.float32]:
        """Scale of each output channel, (out,), of a quantized layer."""
        assert self.ratios is not None
        return expanded_scales(self.base, self.ratios)


@dataclass(frozen=True)
class CompressedNetwork:
    """Everything that the export writes: layers by name, and the uint8 range of each quantized tensor.

    ranges: kernel index (or NETWORK_INPUT) → range of its result.
    """

    traced: Traced
    policy: Policy
    execution: Execution
    layers: dict[str, LayerWeights]
    ranges: dict[int, TensorRange]


def float_results(spec: NetworkSpec) -> frozenset[str]:
    """Layers whose integer kernel writes floats, not codes: linear layers that make the network's output.

    Nothing rounds such a result, however small its spread beside the bias: their biases are stored exactly.
    """
    return frozenset(k.layer for k in spec.kernels if k.layer is not None and k.output and k.op == "linear")


class QuantizedNetwork:
    """The float network pruned by a policy; after `quantize`, with quantizers that mirror the file bit by bit.

    Between the two, `module` is a plain float network that can be finetuned. integer_only: for a device without
    floating point, where everything between the layers is quantized, and the network's input and output.
    """

    def __init__(self, traced: Traced, policy: Policy, *, integer_only: bool = False) -> None:
        check_policy(traced.spec, policy)
        self.traced = traced
        self.policy = policy
        self.execution = plan_execution(traced.spec, policy, integer_only=integer_only)
        self.module: fx.GraphModule = prune(traced, policy)
        self.quantizers = nn.ModuleDict()
        self.ranges: dict[int, TensorRange] = {}
        self._quantizer_of: dict[str, WeightQuantizer] = {}

    def quantize(self, calibration: Iterable[torch.Tensor], *, correct_bias: bool = True) -> None:
        """Choose scales and ranges on `calibration` batches of shape (n, …), and put the quantizers in place.

        Activation ranges are taken from the float network, weight scales minimize the squared error per channel, and
        biases take up the mean shift that weight rounding causes (Nagel et al. 2019, §4.2, with measured means).
        """
        wanted = self._quantized_tensors()
        layers = {
            name: self.traced.layer_nodes[name]
            for name in self.policy.layers
            if self.policy.layer(name).quantized and name in self.traced.biases
        }
        names = {i: self._tensor_name(i) for i in wanted}
        observer = _Observer(self.module, set(names.values()), set(layers.values()) if correct_bias else set())
        with torch.no_grad():
            for batch in calibration:
                observer.run(batch)
        for index, name in names.items():
            self.ranges[index] = self._fixed_range(name) or activation_range(observer.samples(name))
        if self.execution.integer_only:
            self._share_grids()
        for index in self._int8_kernels():
            if self._keeps_grid(index):
                self.ranges[index] = self.ranges[self.traced.spec.kernels[index].inputs[0]]
        self._insert_weight_quantizers()
        if correct_bias:
            for layer, node in layers.items():
                self._correct_bias(layer, observer.means[node])
        self._insert_activation_quantizers(wanted)
        self.module.recompile()

    def freeze(self) -> CompressedNetwork:
        """The network as the file will hold it; `module` is settled to the same numbers, so that both compare."""
        layers = {}
        for layer in self.traced.spec.layers:
            decision = self.policy.layer(layer.name)
            path = self.traced.weights[layer.name]
            weight = get_parameter(self.module, path).detach()
            bias_path = self.traced.biases.get(layer.name)
            bias = get_parameter(self.module, bias_path).detach() if bias_path is not None else None
            quantizer = self._quantizer_of.get(layer.name)
            mask = quantizer.mask.numpy() if quantizer is not None and quantizer.mask is not None else None
            if quantizer is None or quantizer.grid is None:
                dense = weight.numpy().astype(np.float32)
                layers[layer.name] = LayerWeights(
                    dense if mask is None else dense * mask,
                    bias.numpy().copy() if bias is not None else None,
                    mask=mask,
                )
                continue
            input_scale = self._bias_unit(layer.name) if decision.activation == "int8" else None
            base, ratios, scales = quantizer.settle(weight, bias, input_scale)
            base, scales = _told_apart(base, ratios, scales, layers.values())
            per_channel = torch.from_numpy(scales).reshape(quantizer.log_scale.shape)
            levels = quantizer.grid.round(weight / per_channel).to(torch.int8).numpy()
            if mask is not None:
                levels = np.where(mask, levels, 0).astype(np.int8)
            counted, exact = None, self.execution.integer_only or layer.name in float_results(self.traced.spec)
            if bias is not None and input_scale is not None:
                counted, rounded = bias_levels(bias.numpy(), scales, input_scale, exact=exact)
                bias.copy_(torch.from_numpy(rounded))
            layers[layer.name] = LayerWeights(
                weight=(levels * per_channel.numpy()).astype(np.float32),
                bias=bias.numpy().copy() if bias is not None else None,
                bits=decision.weight_bits, integer=decision.activation == "int8",
                levels=levels, base=base, ratios=ratios, mask=mask,
                codebook=quantizer.grid.table if isinstance(quantizer.grid, Codebook) else None,
                bias_levels=counted, exact_bias=exact,
            )  # fmt: skip
        return CompressedNetwork(self.traced, self.policy, self.execution, layers, dict(self.ranges))

    def _bias_unit(self, layer: str) -> float | None:
        """Scale of what an integer layer reads, None where its bias is added in float."""
        node = next(n for n in self.module.graph.nodes if n.name == self.traced.layer_nodes[layer])
        if node.target is aten.linear.default and node.meta["val"].ndim > 2:
            return None  # several positions: a MatMul, with an addition behind it
        return self.ranges[next(k.inputs[0] for k in self.traced.spec.kernels if k.layer == layer)].scale

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(weights and biases, logarithms of scales): the two learn at different rates."""
        scales = [p for name, p in self.module.named_parameters() if name.endswith("log_scale")]
        chosen = {id(p) for p in scales}
        return [p for p in self.module.parameters() if id(p) not in chosen], scales

    def _int8_kernels(self) -> list[int]:
        return [i for i, p in enumerate(self.execution.precisions) if p == "int8"]

    def _quantized_tensors(self) -> list[int]:
        """Kernels (or NETWORK_INPUT) whose result needs a range of its own, in execution order."""
        kernels = self.traced.spec.kernels
        converted = [source for source, step in self.execution.conversions if step == "quantize"]
        if self.execution.integer_only:
            converted.append(NETWORK_INPUT)
        own = [
            i
            for i in self._int8_kernels()
            if not kernels[i].keeps_range
            and (self.execution.integer_only or not (kernels[i].output and kernels[i].op == "linear"))
        ]
        return sorted({*converted, *own})

    def _keeps_grid(self, index: int) -> bool:
        """Whether a kernel's result is on the grid of its input."""
        kernel = self.traced.spec.kernels[index]
        # TFLite's AVERAGE_POOL_2D rounds to the grid of what it reads.
        return kernel.keeps_range or (self.execution.integer_only and kernel.op == "avg_pool")

    def _share_grids(self) -> None:
        """Put the inputs of a concatenation on its own grid: a device would requantize each of them first.

        Four SqueezeNets took 13 to 17 % less time so, by Vela for an Ethos-U55. An input of two concatenations has the
        grid of the first; what an activation clamps by the ends of its grid keeps its own.
        """
        kernels = self.traced.spec.kernels
        for index in reversed(range(len(kernels))):
            for source in kernels[index].inputs if kernels[index].op == "concat" else ():
                while source != NETWORK_INPUT and self._keeps_grid(source):
                    source = kernels[source].inputs[0]
                if source != NETWORK_INPUT and source in self.ranges and kernels[source].op != "activation":
                    self.ranges[source] = self.ranges[index]

    def _fixed_range(self, tensor: str) -> TensorRange | None:
        """The one range that a device without floating point has for a tensor, None if any will do."""
        node = next(n for n in self.module.graph.nodes if n.name == tensor)
        return FIXED_RANGES.get(node.target) if self.execution.integer_only else None

    def _tensor_name(self, index: int) -> str:
        return self.traced.input_name if index == NETWORK_INPUT else self.traced.tensors[index]

    def _insert_weight_quantizers(self) -> None:
        graph = self.module.graph
        nodes = {node.name: node for node in graph.nodes}
        for index, layer in enumerate(self.traced.spec.layers):
            decision = self.policy.layer(layer.name)
            if not decision.quantized and not decision.sparsity:
                continue
            weight = get_parameter(self.module, self.traced.weights[layer.name])
            quantizer = WeightQuantizer(weight, decision)
            self._quantizer_of[layer.name] = quantizer
            self.module.add_submodule(f"weight_quantizer_{index}", quantizer)
            node = nodes[self.traced.layer_nodes[layer.name]]
            path = self.traced.weights[layer.name]
            stored = next(s for s in node.all_input_nodes if s.op == "get_attr" and s.target == path)
            with graph.inserting_before(node):
                call = graph.call_module(f"weight_quantizer_{index}", (stored,))
            node.replace_input_with(stored, call)

    def _insert_activation_quantizers(self, wanted: list[int]) -> None:
        graph = self.module.graph
        nodes = {node.name: node for node in graph.nodes}
        starts = {nodes[name]: i for i, name in enumerate(self.traced.starts)}
        for index in wanted:
            node = nodes[self._tensor_name(index)]
            target = f"activation_quantizer_{index + 1}"
            self.module.add_submodule(target, ActivationQuantizer(self.ranges[index]))
            users = list(node.users)
            if index == NETWORK_INPUT or self.execution.precisions[index] == "fp32":
                # A float tensor: only its integer readers see it quantized.
                users = [u for u in users if self._reads_int8(u, starts)]
            with graph.inserting_after(node):
                call = graph.call_module(target, (node,))
            for user in users:
                user.replace_input_with(node, call)

    def _reads_int8(self, node: fx.Node, starts: dict[fx.Node, int]) -> bool:
        """Whether a reader of a float tensor is, or leads straight to, an integer kernel."""
        if node in starts:
            return self.execution.precisions[starts[node]] == "int8"
        return any(self._reads_int8(user, starts) for user in node.users)

    @torch.no_grad()
    def _correct_bias(self, layer: str, input_mean: torch.Tensor) -> None:
        """Subtract from the bias what the rounding of the weights adds to the layer's output on average."""
        node = next(n for n in self.module.graph.nodes if n.name == self.traced.layer_nodes[layer])
        bias_node = argument(node, 2, "bias", None)
        if not isinstance(bias_node, fx.Node):
            return
        weight = get_parameter(self.module, self.traced.weights[layer])
        shift = (
            (self._quantizer_of[layer](weight) - weight).flatten(2).sum(2)
            if weight.ndim > 2
            else (self._quantizer_of[layer](weight) - weight)
        )
        groups = self.traced.spec.layer_by_name[layer].groups
        if self.traced.spec.layer_by_name[layer].depthwise:
            groups = len(weight)
        mean = input_mean.reshape(groups, -1)  # (groups, in / groups)
        per_group = shift.reshape(groups, -1, shift.shape[1])  # (groups, out / groups, in / groups)
        get_parameter(self.module, str(bias_node.target)).sub_(torch.einsum("goi,gi->go", per_group, mean).reshape(-1))


def _told_apart(
    base: np.float32, ratios: NDArray[np.float16], scales: NDArray[np.float32], others: Iterable[LayerWeights]
) -> tuple[np.float32, NDArray[np.float32]]:
    """(base, scales) that no other layer has: the last bit of the base moves until they differ.

    ONNX Runtime computes what is alike once, and then, where it is told to be exact on x86, fails on the zero-points
    that two layers share ("Attempt to replace the existing tensor").
    """
    alike = [o.base for o in others if o.ratios is not None and np.array_equal(o.ratios, ratios)]
    while base in alike:
        base = np.nextafter(base, np.float32(np.inf))
        scales = expanded_scales(base, ratios)
    return base, scales


class _Observer(fx.Interpreter):
    """Runs the float graph and keeps samples of the named tensors and channel means of the named layers' inputs."""

    SAMPLES = 100_000

    def __init__(self, module: fx.GraphModule, tensors: set[str], layers: set[str]) -> None:
        super().__init__(module)
        self.tensors, self.layers = tensors, layers
        self.kept: dict[str, list[torch.Tensor]] = {name: [] for name in tensors}
        self.means: dict[str, torch.Tensor] = {}
        self.batches = 0
        self.generator = torch.Generator().manual_seed(0)

    def run(self, *args: torch.Tensor) -> object:  # type: ignore[override]
        self.batches += 1
        return super().run(*args)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.tensors and isinstance(value, torch.Tensor):
            self._keep(n.name, value)
        if n.name in self.layers:
            source = self.env[n.args[0]]  # type: ignore[index]
            linear = "linear" in str(n.target)
            mean = source.reshape(-1, source.shape[-1]).mean(0) if linear else source.flatten(2).mean((0, 2))
            self.means[n.name] = (
                self.means.get(n.name, torch.zeros(())) + (mean - self.means.get(n.name, 0)) / self.batches
            )
        return value

    def _keep(self, name: str, value: torch.Tensor) -> None:
        flat = value.flatten()
        if len(flat) > self.SAMPLES:
            index = torch.randint(len(flat), (self.SAMPLES,), generator=self.generator)
            # The extremes decide about clipping: a sample must not miss them.
            flat = torch.cat([flat[index], flat.min()[None], flat.max()[None]])
        self.kept[name].append(flat.clone())

    def samples(self, name: str) -> torch.Tensor:
        return torch.cat(self.kept[name])


def float_copy(traced: Traced) -> fx.GraphModule:
    """The float network as a module of its own, for distillation and scoring."""
    module = copy.deepcopy(traced.graph)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
