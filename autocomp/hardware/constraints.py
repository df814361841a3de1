"""What a runtime cannot execute, as one-sentence functions. A profile lists those that hold on its device.

Each returns True if the layer may run under the decision; its docstring is the reason shown to the user if not.
"""

from collections.abc import Callable

from autocomp.network import LayerSpec
from autocomp.policy import LayerPolicy

Constraint = Callable[[LayerSpec, LayerPolicy], bool]


def integer_convolution_is_not_grouped(layer: LayerSpec, decision: LayerPolicy) -> bool:
    """A grouped integer convolution that is not depthwise runs group by group, slower than the float kernel."""
    return decision.activation != "int8" or layer.groups == 1 or layer.depthwise


def convolution_is_dense_or_depthwise(layer: LayerSpec, decision: LayerPolicy) -> bool:
    """A grouped convolution that is not depthwise stands in no table of the device: its latency would be a guess."""
    return layer.groups == 1 or layer.depthwise


def integer_convolution_has_at_most_two_axes(layer: LayerSpec, decision: LayerPolicy) -> bool:
    """An integer convolution has one or two spatial axes; over three there is no integer kernel."""
    return decision.activation != "int8" or len(layer.weight_shape) <= 4


CONSTRAINTS: dict[str, Constraint] = {
    function.__name__: function
    for function in (
        integer_convolution_is_not_grouped,
        convolution_is_dense_or_depthwise,
        integer_convolution_has_at_most_two_axes,
    )
}


def reason(constraint: Constraint) -> str:
    """The sentence shown to the user when `constraint` does not hold."""
    return " ".join((constraint.__doc__ or constraint.__name__).split())
