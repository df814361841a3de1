"""`--strict`: nothing is decided on a latency that the table does not reach. Such choices are left out, or refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from autocomp.errors import UserError
from autocomp.hardware.choices import Layout, choosable_kernels, conversion_kernel, executed, result_shape
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel, Precision
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy
from autocomp.space import Choice, Gene, GeneKind, SearchSpace

#: The kernels that a choice of a gene stands for.
_KernelsOf = Callable[[Gene, Choice], list[Kernel]]

#: What a kernel's size is told by, beside its operator and precision.
_SIZES = ("in_channels", "out_channels", "height", "width", "kernel_h", "kernel_w", "stride", "groups")


def within_measured_range(
    space: SearchSpace, latency: LatencyModel, table: LatencyTable, *, integer_only: bool = False
) -> SearchSpace:
    """`space` without the choices whose kernels `latency` would extrapolate, so that no candidate needs one.

    A precision is left out of a layer where the unpruned layer would be extrapolated in it; a number of channels
    where a kernel of the group would be, in any precision left and all other groups unpruned. UserError naming the
    kernel and what was measured nearest to it where a gene is left without a choice, or where kernels are extrapolated
    that no choice by itself stands for.
    """
    if _first_extrapolated(choosable_kernels(space, integer_only=integer_only), latency) is None:
        return space
    measured = _narrowed(space, "quant", _precision_kernels(space, integer_only), latency, table)
    narrowed = _narrowed(measured, "channels", _channel_kernels(measured, integer_only), latency, table)
    beyond = _first_extrapolated(choosable_kernels(narrowed, integer_only=integer_only), latency)
    if beyond is not None:
        raise outside_range(beyond, "", table)
    return narrowed


def outside_range(kernel: Kernel, layer: str, table: LatencyTable) -> UserError:
    """The error for a kernel that the table does not reach. layer: that it executes, "" for none."""
    where = f"layer {layer}: " if layer else ""
    return UserError(
        f"--strict: {where}{kernel} lies outside what was measured ({nearest_range(kernel, table)}): "
        "measure it with `autocomp profile`, choose another space, or leave out --strict"
    )


def nearest_range(kernel: Kernel, table: LatencyTable) -> str:
    """What the table holds of the kernel's operator and precision, in the sizes by which the kernel is outside."""
    rows = [row for row in table if (row.op, row.precision) == (kernel.op, kernel.precision)]
    if not rows:
        return f"no {kernel.precision} {kernel.op} at all"
    ranges = {size: sorted(getattr(row, size) for row in rows) for size in _SIZES}
    beyond = [size for size, r in ranges.items() if not r[0] <= getattr(kernel, size) <= r[-1]]
    if not beyond:
        return f"{len(rows)} {kernel.precision} {kernel.op}, none near it"
    return ", ".join(f"{size} {ranges[size][0]} to {ranges[size][-1]}" for size in beyond)


def _precision_kernels(space: SearchSpace, integer_only: bool) -> _KernelsOf:
    """Of a layer's precision: the unpruned layer as it is then executed."""
    most = _most_channels(space)

    def kernels(gene: Gene, choice: Choice) -> list[Kernel]:
        decision = choice if isinstance(choice, LayerPolicy) else FLOAT
        unpruned = Policy({gene.target: decision}, most)
        precision: Precision = "int8" if decision.activation == "int8" else "fp32"
        nodes = (node for node in space.network.kernels if node.layer == gene.target)
        return [node.kernel(precision, unpruned, coded=integer_only) for node in nodes]

    return kernels


def _channel_kernels(space: SearchSpace, integer_only: bool) -> _KernelsOf:
    """Of a group's channels: every kernel and conversion that reads or makes them, all other groups unpruned."""
    layout, most = Layout(space, integer_only=integer_only), _most_channels(space)
    network = layout.network
    plain = {layer.name: INT8 for layer in network.layers}  # how weights are coded does not move a kernel out of range

    def kernels(gene: Gene, choice: Choice) -> list[Kernel]:
        policy = Policy(plain, {**most, gene.target: choice})  # type: ignore[dict-item]
        found = [
            kernel
            for node, flag in zip(network.kernels, layout.executed, strict=True)
            if gene.target in (*node.in_channels.groups, *node.out_channels.groups)
            for int8 in flag.values
            for kernel in executed(node, "int8" if int8 else "fp32", policy, integer_only=integer_only)
        ]
        for source in layout.stored:
            channels = result_shape(network, source)[0]
            if gene.target in channels.groups:
                steps = layout.conversions(source)
                found += [conversion_kernel(network, source, step, channels.count(policy)) for step in steps]
        return found

    return kernels


def _narrowed(
    space: SearchSpace, kind: GeneKind, kernels: _KernelsOf, latency: LatencyModel, table: LatencyTable
) -> SearchSpace:
    """`space` without the choices of that kind of gene any of whose `kernels` is extrapolated."""
    genes: list[Gene] = []
    removed = [*space.removed]
    for gene in (*space.genes, *space.fixed):
        if gene.kind != kind:
            genes.append(gene)
            continue
        outside = {choice: _first_extrapolated(kernels(gene, choice), latency) for choice in gene.choices}
        left = tuple(choice for choice, kernel in outside.items() if kernel is None)
        for choice, kernel in outside.items():
            if kernel is not None:
                if not left:
                    raise outside_range(kernel, gene.target, table)
                removed.append(
                    (f"{gene.target}: {choice}", f"{kernel} is not measured: {nearest_range(kernel, table)}")
                )
        genes.append(replace(gene, choices=left))
    return SearchSpace(space.network, genes, removed)


def _first_extrapolated(kernels: Sequence[Kernel], latency: LatencyModel) -> Kernel | None:
    far = latency.predict(kernels).extrapolated
    return next((kernel for kernel, outside in zip(kernels, far, strict=True) if outside), None)


def _most_channels(space: SearchSpace) -> dict[str, int]:
    genes = (gene for gene in (*space.genes, *space.fixed) if gene.kind == "channels")
    return {gene.target: max(c for c in gene.choices if isinstance(c, int)) for gene in genes}
