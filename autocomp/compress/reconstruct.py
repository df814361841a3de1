"""Least-squares reconstruction: after channels are dropped, each layer is refitted to give what it gave before.

He et al. 2017 (Channel Pruning, eq. 3) and AMC (He et al. 2018, §3.3) refit a layer on the activations that reach it.
It replaces the re-estimation of batch-norm statistics, which are folded here, and lets finetuning start from a
network that works instead of one whose signal has died away.
"""

from collections.abc import Mapping

import torch
from torch import fx
from torch.nn import functional

from autocomp.compress.graph import CONVOLUTIONS, argument, get_parameter
from autocomp.compress.prune import kept_positions
from autocomp.compress.trace import Traced
from autocomp.network import WEIGHT_ONLY, LayerSpec

#: Rows of the least-squares problems, and elements of an unfolded input, at most.
_ROWS, _ELEMENTS = 8192, 20_000_000
#: Strength of the pull towards the old weights, relative to the mean square of the inputs.
_RIDGE = 1e-2


@torch.no_grad()
def reconstruct(traced: Traced, pruned: fx.GraphModule, kept: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> None:
    """Refit the layers of `pruned` in place, one after another, to the original network's outputs on `inputs` (n, …).

    kept: pruned group → indices of the channels that stay, as `select_channels` gives them. Both networks run side by
    side; a layer is fitted on what the layers before it, already refitted, feed it.
    """
    original, smaller = fx.Interpreter(traced.graph), fx.Interpreter(pruned)
    original.env, smaller.env = {}, {}
    specs = traced.spec.layer_by_name
    layer_of = {node: layer for layer, node in traced.layer_nodes.items() if specs[layer].op not in WEIGHT_ONLY}
    generator = torch.Generator().manual_seed(0)
    for before, after in zip(traced.graph.graph.nodes, pruned.graph.nodes, strict=True):
        if before.op == "output":
            return
        if before.op == "placeholder":
            original.env[before] = smaller.env[after] = inputs
            continue
        original.env[before] = original.run_node(before)
        layer = layer_of.get(before.name)
        if layer is not None:
            _refit(traced, specs[layer], pruned, after, smaller.env, original.env[before], kept, generator)
        smaller.env[after] = smaller.run_node(after)
        for interpreter, node in ((original, before), (smaller, after)):
            for dead in interpreter.user_to_last_uses.get(node, []):
                interpreter.env.pop(dead, None)


def _refit(
    traced: Traced, spec: LayerSpec, pruned: fx.GraphModule, node: fx.Node, env: dict[fx.Node, object],
    target: torch.Tensor, kept: Mapping[str, torch.Tensor], generator: torch.Generator,
) -> None:  # fmt: skip
    weight = get_parameter(pruned, traced.weights[spec.name])
    bias_node = argument(node, 2, "bias", None)
    bias = get_parameter(pruned, str(bias_node.target)) if isinstance(bias_node, fx.Node) else None
    source = env[node.args[0]]  # type: ignore[index]
    assert isinstance(source, torch.Tensor)
    channel = -1 if spec.op == "linear" else 1
    index = kept_positions(spec.out_channels, kept)
    wanted = target if index is None else target.index_select(channel, index)
    if spec.groups > 1:
        _match_moments(node, weight, bias, source, wanted)
        return
    rows, answers = _problem(node, spec, source, wanted, weight)
    choice = torch.randperm(len(rows), generator=generator)[:_ROWS]
    rows, answers = rows[choice], answers[choice]
    flat = weight.reshape(len(weight), -1)
    mean_in, mean_out = rows.mean(0), answers.mean(0)
    if bias is None:
        mean_in, mean_out = torch.zeros_like(mean_in), torch.zeros_like(mean_out)
    rows, answers = rows - mean_in, answers - mean_out
    gram = rows.T @ rows
    pull = _RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    gram.diagonal().add_(pull)
    # Solve for the change of the weights: the ridge then pulls towards the old ones and not towards zero.
    change = torch.linalg.solve(gram, rows.T @ (answers - rows @ flat.T)).T
    if not torch.isfinite(change).all():
        return
    weight.add_(change.reshape(weight.shape))
    if bias is not None:
        bias.copy_(mean_out - weight.reshape(len(weight), -1) @ mean_in)


def _problem(
    node: fx.Node, spec: LayerSpec, source: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (rows, in · window) and targets (rows, out) of a layer, one row a position."""
    if node.target not in CONVOLUTIONS:
        return source.reshape(-1, source.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    flat = source.unsqueeze(2) if source.ndim == 3 else source
    answers = wanted.unsqueeze(2) if wanted.ndim == 3 else wanted
    window = (1, weight.shape[2]) if weight.ndim == 3 else tuple(weight.shape[2:])

    def pair(name: str, position: int, default: int) -> tuple[int, int]:
        value = argument(node, position, name, default)
        values = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
        if weight.ndim == 3:
            return (1 if name != "padding" else 0, int(values[-1]))
        return (int(values[0]), int(values[-1]))

    per_image = flat.shape[1] * window[0] * window[1] * answers.shape[2] * answers.shape[3]
    images = max(1, min(len(flat), _ELEMENTS // max(1, per_image)))
    columns = functional.unfold(
        flat[:images], window, pair("dilation", 5, 1), pair("padding", 4, 0), pair("stride", 3, 1)
    )
    rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
    return rows, answers[:images].permute(0, 2, 3, 1).reshape(-1, answers.shape[1])


def _match_moments(
    node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None, source: torch.Tensor, wanted: torch.Tensor
) -> None:
    """Scale and shift each output channel of a depthwise or grouped convolution to its old mean and variance."""
    settings = node.args[3:] if len(node.args) > 3 else ()
    given = node.target(source, weight, bias, *settings, **{k: v for k, v in node.kwargs.items() if k != "bias"})  # type: ignore[operator]
    axes = [d for d in range(given.ndim) if d != 1]
    gain = (wanted.std(axes) / given.std(axes).clamp_min(1e-6)).clamp(0.2, 5.0)
    weight.mul_(gain.reshape(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        shift = wanted.mean(axes) - (given.mean(axes) - bias) * gain
        bias.copy_(shift)
