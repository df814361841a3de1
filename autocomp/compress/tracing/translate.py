"""Recurrent layers as the ONNX operators that runtimes have: one for each layer and direction.

The exporter would unroll nn.RNN over its steps, and lay the weights of both directions of the others side by side. Here
each weight reaches its operator as a stored tensor of its own, to be stored in few bits and unpacked at load.
"""

from collections.abc import Callable, Sequence
from typing import Any

from onnxscript import opset18
from onnxscript.function_libs.torch_lib.tensor_typing import TFloat

from autocomp.compress.tracing.recurrent import CELLS, Cell

op: Any = opset18  # its types know variables alone, not the lists that it takes as constants


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter is to write for each kind."""
    return {target: _of_several_states(cell) if cell.operator == "LSTM" else _of_one_state(cell)
            for target, cell in CELLS.items()}  # fmt: skip


def _of_one_state(cell: Cell) -> Callable[..., Any]:
    def recurrent(
        input: TFloat, hx: TFloat, params: Sequence[TFloat], has_biases: bool, num_layers: int, dropout: float,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[TFloat, TFloat]:  # fmt: skip
        return _written(cell, input, [hx], params, has_biases, num_layers, bidirectional, batch_first)  # type: ignore[return-value]

    return recurrent


def _of_several_states(cell: Cell) -> Callable[..., Any]:
    def recurrent(
        input: TFloat, hx: Sequence[TFloat], params: Sequence[TFloat], has_biases: bool, num_layers: int,
        dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[TFloat, TFloat, TFloat]:  # fmt: skip
        return _written(cell, input, hx, params, has_biases, num_layers, bidirectional, batch_first)  # type: ignore[return-value]

    return recurrent


def _written(
    cell: Cell, x: Any, states: Sequence[Any], parameters: Sequence[Any], has_biases: bool, layers: int,
    bidirectional: bool, batch_first: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Results of all layers, and the last values of each state."""
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    if len(parameters) != each * layers * directions:
        raise ValueError("a recurrent layer with projections (proj_size) has no ONNX operator")
    hidden = int(states[0].shape[2])
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    last: list[list[Any]] = [[] for _ in states]
    for layer in range(layers):
        results = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = parameters[each * index : each * (index + 1)]
            initial = [op.Slice(s, [index], [index + 1], axes=[0]) if layers * directions > 1 else s for s in states]
            result, *finals = _one(cell, x, weights, initial, hidden, reverse=bool(direction))
            results.append(op.Squeeze(result, [1]))
            for kept, final in zip(last, finals, strict=True):
                kept.append(final)
        x = op.Concat(*results, axis=-1) if len(results) > 1 else results[0]
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    return x, *(op.Concat(*kept, axis=0) if len(kept) > 1 else kept[0] for kept in last)


def _one(
    cell: Cell, x: Any, weights: Sequence[Any], initial: Sequence[Any], hidden: int, *, reverse: bool
) -> tuple[Any, ...]:  # fmt: skip
    """One layer in one direction. Its weights keep torch's order of gates here: `settle_recurrent` brings them into
    the operator's."""
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "reverse" if reverse else "forward"}
    if cell.activation:
        attributes["activations"] = [cell.activation]
    if cell.operator == "GRU":
        attributes["linear_before_reset"] = 1
    inputs = [x, op.Unsqueeze(weights[0], [0]), op.Unsqueeze(weights[1], [0])]
    biases = (
        op.Unsqueeze(op.Concat(*(_gates(cell, b, hidden) for b in weights[2:]), axis=0), [0]) if weights[2:] else None
    )
    named = dict(zip(("initial_h", "initial_c"), initial, strict=False))
    result = getattr(op, cell.operator)(*inputs, biases, None, **named, **attributes)
    return tuple(result)


def _gates(cell: Cell, bias: Any, hidden: int) -> Any:
    if len(cell.gates) == 1:
        return bias
    return op.Concat(*(op.Slice(bias, [g * hidden], [(g + 1) * hidden], axes=[0]) for g in cell.gates), axis=0)
