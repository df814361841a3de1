"""What the runtime executes for a traced network beside its layers: read from the graph that it makes of the template.

An operator of torch may come to several of the runtime's (attention), to one with work of its own (a recurrent layer),
or to none (a view). Reading them where `estimate` reads a file's makes both count the same kernels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

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
        read = [[Kernel(**fields) for fields in kernels] for kernels in json.loads(kept.read_text(encoding="utf-8"))]
    else:
        read = _by_kernel(executed_nodes(template, network.name or "the network"), starts, tensors)
        kept.write_text(json.dumps([[asdict(kernel) for kernel in kernels] for kernels in read]), encoding="utf-8")
    kernels = (_with_its_own(node, found) for node, found in zip(network.kernels, read, strict=True))
    return replace(network, kernels=tuple(kernels))


def _by_kernel(nodes: Sequence[Executed], starts: Sequence[str], tensors: Sequence[str]) -> list[list[Kernel]]:
    """The kernels that are executed for each of the network's: those on the way to its result from the results before.

    A value whose name the runtime has lost belongs to the first that needs it.
    """
    places = {name: place for names in (starts, tensors) for place, name in enumerate(names)}
    needed: dict[str, int] = {}
    found: list[list[Kernel]] = [[] for _ in tensors]
    for node, kernels in reversed(nodes):
        made = [places[name] for name in node.output if name in places]
        readers = [needed[name] for name in node.output if name in needed]
        place = min(made or readers or [len(tensors) - 1])
        for name in node.input:
            needed[name] = min(place, needed.get(name, place))
        if found:
            found[place][:0] = kernels
    return found


def _with_its_own(node: KernelNode, found: Sequence[Kernel]) -> KernelNode:
    """`node` with the kernels `found` for it: the one that it names, which may run as int8, and the rest."""
    named = node.layer is not None or (node.int8 and not node.free)
    if not named:
        return replace(node, work=tuple(found), only_work=True)
    alike = LAYER_OPS if node.op in LAYER_OPS else (node.op,)
    own = next((kernel for kernel in found if kernel.op in alike), None)
    if own is None:
        # The runtime has merged or dropped it: what is executed in its place is all there is in float, but an integer
        # network may need it.
        return replace(node, work=tuple(found), only_work=node.op not in LAYER_OPS and node.op == "activation")
    rest = list(found)
    rest.remove(own)
    return replace(_of_size(node, own), work=tuple(rest))


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
