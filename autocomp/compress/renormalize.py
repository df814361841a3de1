"""Batch-norm for the time of a recovery: put behind each convolution of a pruned network, folded away again after.

Batch-norm is folded when a network is traced, and a deep network that lost channels trains badly without it.
"""

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from autocomp.compress.graph import CONVOLUTIONS, argument, get_parameter, set_parameter, weight_path
from autocomp.compress.tracing.layers import layer_calls

_EPSILON = 1e-5


class Renormalized:
    """A graph with batch-norms behind its convolutions. `module` trains; `fold` gives the plain graph back."""

    def __init__(self, module: fx.GraphModule, inputs: torch.Tensor) -> None:
        self.module = module
        self._norms: dict[fx.Node, tuple[str, nn.Module]] = {}
        # A convolution without a bias has nowhere to put the shift when the norm is folded: it gets none.
        # One that is called several times would be scaled by the norms of all its calls.
        calls, _ = layer_calls(module.graph)
        convolutions = [c.node for c in calls if c.node.target in CONVOLUTIONS and c.bias is not None]
        moments = _output_moments(module, {n.name for n in convolutions}, inputs)
        for index, node in enumerate(convolutions):
            mean, variance = moments[node.name]
            norm = (nn.BatchNorm1d if node.target is CONVOLUTIONS[0] else nn.BatchNorm2d)(len(mean), eps=_EPSILON)
            with torch.no_grad():  # at the start it changes nothing
                norm.running_mean.copy_(mean)  # type: ignore[union-attr]
                norm.running_var.copy_(variance)  # type: ignore[union-attr]
                norm.weight.copy_((variance + _EPSILON).sqrt())
                norm.bias.copy_(mean)
            name = f"recovery_norm_{index}"
            module.add_submodule(name, norm)
            with module.graph.inserting_after(node):
                call = module.graph.call_module(name, (node,))
            node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)  # type: ignore[misc]
            self._norms[node] = (name, norm)
        module.recompile()

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the batch-norms into the convolutions and take them out of the graph."""
        graph = self.module.graph
        for node, (name, norm) in self._norms.items():
            path = weight_path(node)
            assert path is not None and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            bias_node = argument(node, 2, "bias", None)
            assert isinstance(bias_node, fx.Node)
            bias_path = str(bias_node.target)
            weight, bias = fuse_conv_bn_weights(
                get_parameter(self.module, path), get_parameter(self.module, bias_path), norm.running_mean,
                norm.running_var, norm.eps, norm.weight, norm.bias,
            )  # fmt: skip
            set_parameter(self.module, path, weight)
            set_parameter(self.module, bias_path, bias)
            (call,) = [user for user in node.users if user.op == "call_module" and user.target == name]
            call.replace_all_uses_with(node)
            graph.erase_node(call)
            self.module.delete_submodule(name)
        self.module.recompile()


@torch.no_grad()
def _output_moments(
    module: fx.GraphModule, names: set[str], inputs: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.name in names and isinstance(value, torch.Tensor):
                axes = [d for d in range(value.ndim) if d != 1]
                found[n.name] = value.mean(axes), value.var(axes, correction=0)
            return value

    Watch(module).run(inputs)
    return found
