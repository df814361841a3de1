"""What the runtime executes for a traced network beside its layers: read from the graph that it makes of the template.

An operator of torch may come to several of the runtime's (attention), to one with work of its own (a recurrent layer),
or to none (a view). Reading them where `estimate` reads a file's makes both count the same kernels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocomp.hardware.onnx_kernels import Executed, executed_nodes
from autocomp.kernel import Kernel
from autocomp.network import LAYER_OPS, Channels, KernelNode, NetworkSpec

WORK_FILE = "executed.json"


def with_work(
    network: NetworkSpec, starts: Sequence[str], tensors: Sequence[str], template: bytes, folder: Path
) -> NetworkSpec:
    """`network` with the work of each of its kernels, as the runtime executes `template`.

    starts, tensors: of each kernel, the values where it begins and ends. What was read is kept in `folder`, which
    holds the template, for the next process. UserError where the runtime does not load the template.
    """
    kept = folder / WORK_FILE
    if kept.exists():
        found = [_Found.of(fields) for fields in json.loads(kept.read_text(encoding="utf-8"))]
    else:
        found = _by_kernel(executed_nodes(template, network.name or "the network"), starts, tensors)
        kept.write_text(json.dumps([asdict(each) for each in found]), encoding="utf-8")
    kernels = (_with_its_own(node, each) for node, each in zip(network.kernels, found, strict=True))
    return replace(network, kernels=tuple(kernels))


@dataclass
class _Found:
    """What is executed for one of the network's kernels. size: channels, height and width of its result, if known."""

    kernels: list[Kernel] = field(default_factory=list)
    size: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "_Found":
        size = fields["size"]
        return cls([Kernel(**kernel) for kernel in fields["kernels"]], None if size is None else tuple(size))


def _by_kernel(nodes: Sequence[Executed], starts: Sequence[str], tensors: Sequence[str]) -> list[_Found]:
    """What is executed for each of the network's kernels: all on the way to its result from the results before.

    A value whose name the runtime has lost belongs to the first that needs it.
    """
    places = {name: place for names in (starts, tensors) for place, name in enumerate(names)}
    needed: dict[str, int] = {}
    found = [_Found() for _ in tensors]
    for node, kernels, sizes in reversed(nodes):
        made = [places[name] for name in node.output if name in places]
        readers = [needed[name] for name in node.output if name in needed]
        place = min(made or readers or [len(tensors) - 1])
        for name in node.input:
            needed[name] = min(place, needed.get(name, place))
        for name in node.output:
            if name in places and tensors[places[name]] == name:
                found[places[name]].size = sizes.get(name)
        if found:
            found[place].kernels[:0] = kernels
    return found


def _with_its_own(node: KernelNode, found: _Found) -> KernelNode:
    """`node` with what was `found` for it: the kernel that it names, which may run as int8, and the rest."""
    if node.layer is None and (node.free or not node.int8):
        return _with_result(replace(node, work=tuple(found.kernels), only_work=True), found.size)
    alike = LAYER_OPS if node.op in LAYER_OPS else (node.op,)
    own = next((kernel for kernel in found.kernels if kernel.op in alike), None)
    if own is None:
        # Transpositions have no operator of their own in a network; what else the runtime merged into another kernel
        # is executed where the network runs as int8.
        moved = replace(node, work=tuple(found.kernels), only_work=node.op == "activation")
        return _with_result(moved, found.size) if moved.only_work else moved
    rest = list(found.kernels)
    rest.remove(own)
    return replace(_of_size(node, own), work=tuple(rest))


def _with_result(node: KernelNode, size: tuple[int, int, int] | None) -> KernelNode:
    """`node` with the size that the runtime's result has, which no window tells."""
    if size is None:
        return node
    channels, height, width = size
    if channels == node.out_channels.count():
        return replace(node, result=(height, width))
    if node.out_channels.groups:
        return node
    return replace(node, out_channels=Channels(((None, channels),)), result=(height, width))


def _of_size(node: KernelNode, own: Kernel) -> KernelNode:
    """`node` with the size that the runtime's kernel has, where pruning does not depend on how it is laid out."""
    if node.op in LAYER_OPS:
        return node
    if own.in_channels == node.in_channels.count():
        return replace(node, height=own.height, width=own.width)
    if node.in_channels.groups or node.out_channels.groups:
        return node
    inputs, outputs = (Channels(((None, count),)) for count in (own.in_channels, own.out_channels))
    return replace(node, in_channels=inputs, out_channels=outputs, height=own.height, width=own.width)
