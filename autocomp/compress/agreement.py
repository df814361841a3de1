"""Whether a network's forms compute the same: torch, the traced graph, and the float file under ONNX Runtime.

Everything after tracing is judged against the traced graph; a fault in it would be in every figure, unseen. So the
network itself is run on different inputs, alone and among others, and both forms must follow it up to rounding.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import fx

from autocomp.compress.copying import copied
from autocomp.compress.outputs import first_output
from autocomp.compress.plain_form import ROUNDING, PlainForm, distance, first_line, tensors_of, undisturbed
from autocomp.compress.recording import Step, first_missing, first_parting, record
from autocomp.errors import UserError

#: What rounding may explain at most, however deep the network.
_WIDEST = 1e-2
#: How often the network is run again where it draws random numbers and has given the same answer twice.
_MORE_RUNS = 8


class Disagreement(UserError):
    """A form of the network does not compute what the network does."""


@dataclass(frozen=True)
class Answers:
    """What a network answers. batches: (inputs, outputs) for a batch of several and for examples alone."""

    batches: tuple[tuple[torch.Tensor, tuple[torch.Tensor, ...]], ...]


def answers(network: PlainForm, example: torch.Tensor) -> Answers:
    """Run `network` on examples alone and among others. example: (n, …) with n ≥ 1.

    Raises UserError where it fails on a batch of another size, gives different answers to the same input, answers that
    depend on the rest of the batch, or ones that are not finite; the line names the operator and its module. Of several
    outputs, that holds for the one that is scored.
    """
    if example.is_floating_point() and not torch.isfinite(example).all():
        raise UserError("the example input holds NaN or infinity: check the task's data")
    _check_result(network, example)
    several, others = _batches(network, example)
    outputs = _run(network, several, len(example))
    output = outputs[0]
    _check_finite(network, several, output)
    _check_repeats(network, several, output)
    if _beyond_rounding(network, several[:1], distance(_run(network, others, len(example))[0][:1], output[:1])):
        raise UserError(_depends(network, several, others))
    found = [(several, outputs)]
    for row in (0, 1):
        alone = several[row : row + 1]
        answers = _run(network, alone, len(example))
        answer = answers[0]
        if answer.shape != output[:1].shape:
            raise UserError(
                f"the network gives shape {tuple(answer.shape)} for a batch of one and {tuple(output.shape)} for one "
                f"of {len(output)}: keep the batch axis (a squeeze() without an axis drops it)"
            )
        if _beyond_rounding(network, alone, distance(answer, output[row : row + 1])):
            raise UserError(_depends(network, several, alone, row))
        found.append((alone, answers))
    return Answers(tuple(found))


def check_agreement(network: PlainForm, known: Answers, graph: fx.GraphModule, template: bytes) -> None:
    """Raise Disagreement where the traced graph or the float file answers otherwise than the network.

    graph, template: the network traced, as an fx graph and as a serialized ONNX model. The file runs in a session with
    the options that its user will not think to change: on the CPU, with all optimizations.
    """
    model = onnx.load_model_from_string(template)
    session = _session(template)
    for inputs, expected in known.batches:
        with undisturbed():
            found = graph(inputs.clone())
        _compare(network, inputs, expected, found, "the traced graph", partial(_graph_values, graph, inputs))
        found = _run_file(session, inputs)
        _compare(network, inputs, expected, found, "the float ONNX file", partial(_file_values, model, inputs))


# ---- the network against itself ------------------------------------------------------------------------------------
def _check_result(network: PlainForm, example: torch.Tensor) -> None:
    try:
        result = network(example)
    except Exception as error:
        raise UserError(
            f"the network fails on its example input of shape {tuple(example.shape)}: "
            f"{type(error).__name__}: {first_line(error)}; check the task's example input"
        ) from error
    output = first_output(result)
    if output.ndim < 1 or output.shape[0] != example.shape[0]:
        raise UserError(
            f"expected the network's output to have the batch of {example.shape[0]} as its first axis, "
            f"got shape {tuple(output.shape)}{_of_several(network)}"
        )


def _of_several(network: PlainForm) -> str:
    """Which output a line is about, and how another one is chosen."""
    if len(network.outputs) < 2:
        return ""
    return f" for {network.outputs[0]}: Task.output says which of {', '.join(network.outputs)} is scored"


def _batches(network: PlainForm, example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of five with the same first example and other neighbours; the second example is another one."""
    first, second = example[:1], example[1:2] if len(example) > 1 else example[:1]
    changed = _changed(network, first)
    if torch.equal(first, second):
        second = changed
    # Not the same five in another order: what a statistic of the batch is must differ.
    return torch.cat([first, second, changed, second, first]), torch.cat([first, changed, changed, second, changed])


def _changed(network: PlainForm, one: torch.Tensor) -> torch.Tensor:
    """An input unlike `one`, (1, …), on which the network gives finite answers; `one` itself where none is found.

    The same values in another order come first: what they may be (a range of pixels, indices of words) is then kept.
    """
    candidates = [one.flip(tuple(range(1, one.ndim))) if one.ndim > 1 else one]
    if one.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        candidates.append(one + torch.randn(one.shape, generator=generator) * max(float(one.std(correction=0)), 0.5))
    for candidate in candidates:
        if torch.equal(candidate, one):
            continue
        try:
            given = tensors_of(network(candidate.repeat(2, *[1] * (one.ndim - 1))))
        except Exception:  # noqa: BLE001 user code: an input that it does not take
            continue
        if all(torch.isfinite(tensor).all() for tensor in given if tensor.is_floating_point()):
            return candidate
    return one


def _run(network: PlainForm, inputs: torch.Tensor, expected_batch: int) -> tuple[torch.Tensor, ...]:
    """The network's tensors for a batch."""
    try:
        result = network(inputs)
    except Exception as error:
        raise UserError(
            f"the network fails on a batch of {len(inputs)}, on the example of {expected_batch} it does not: "
            f"{type(error).__name__}: {first_line(error)}; avoid a fixed batch size"
        ) from error
    return tuple(tensors_of(result))


def _check_repeats(network: PlainForm, inputs: torch.Tensor, output: torch.Tensor) -> None:
    def run() -> object:
        return network.module(inputs.clone())

    def repeats(times: int) -> bool:
        return all(distance(tensors_of(run())[0], output) <= ROUNDING for _ in range(times))

    # Not through the network's own call, which would give each run the same random numbers.
    with undisturbed():
        before = _random_state()
        if repeats(1) and (before == _random_state() or repeats(_MORE_RUNS)):
            return
        first = record(network.module, run)
        parted = (first_parting(first, record(network.module, run), torch.equal) for _ in range(4 * _MORE_RUNS))
        where = next((step for step in parted if step is not None), None)
    raise UserError(
        f"the network answers the same input differently each time{_first(where)}; it must be deterministic in "
        "evaluation mode: no dropout with training=True, no random numbers, nothing that is counted between calls"
    )


def _random_state() -> tuple[object, ...]:
    """Where the generators stand that a network may draw from without saying so."""
    keys, position = np.random.get_state()[1:3]  # noqa: NPY002
    return bytes(torch.random.get_rng_state().numpy()), random.getstate(), bytes(keys), position


def _check_finite(network: PlainForm, inputs: torch.Tensor, output: torch.Tensor) -> None:
    if torch.isfinite(output).all():
        return
    steps = record(network.module, lambda: network(inputs))

    def bad(tensor: torch.Tensor) -> bool:
        # Masks of attention hold −∞ rightly.
        return tensor.is_floating_point() and bool((torch.isnan(tensor) | (tensor == torch.inf)).any())

    where = next((step for step in steps if any(bad(tensor) for tensor in step.outputs)), None)
    nan = torch.isnan(output).any()
    raise UserError(
        f"the network's output for its example holds {'NaN' if nan else 'infinity'}{_first(where)}: "
        "check its weights and that the inputs are scaled as in training"
    )


def _depends(network: PlainForm, inputs: torch.Tensor, others: torch.Tensor, row: int = 0) -> str:
    """The line for a network that answers one example, inputs[row] and others[0], differently in the two batches."""
    one, other = (record(network.module, partial(network, x)) for x in (inputs, others))
    sizes = len(inputs), len(others)

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.ndim == 0 and not a.is_floating_point():
            return True  # how many batches there were
        in_one, in_other = _of_example(a, b, sizes, row) or (a, b)
        return distance(in_other, in_one) <= ROUNDING

    where = first_parting(one, other, same)
    return (
        f"the network's answer to an example depends on the rest of its batch{_first(where)}; each example must be "
        "answered alone: no statistics of the batch (track_running_stats=False), no operator along the batch axis, no "
        "control flow that depends on the data of all"
    )


def _of_example(
    a: torch.Tensor, b: torch.Tensor, sizes: tuple[int, int], row: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What belongs to an example in two batches of `sizes`: a's of number `row`, b's first.

    None where no axis is the batch, or the batch and something within it.
    """
    if a.ndim != b.ndim:
        return None
    axes = [i for i in range(a.ndim) if a.shape[i] * sizes[1] == b.shape[i] * sizes[0] and a.shape[i] % sizes[0] == 0]
    if not axes:
        return None
    axis = min(axes, key=lambda i: (a.shape[i] != sizes[0], i))
    length = a.shape[axis] // sizes[0]
    return a.narrow(axis, row * length, length), b.narrow(axis, 0, length)


def _first(where: Step | None) -> str:
    return "" if where is None else f" (first in {where})"


# ---- the forms against the network ---------------------------------------------------------------------------------
def _compare(
    network: PlainForm, inputs: torch.Tensor, expected: Sequence[torch.Tensor], found: object, form: str,
    values: Callable[[], list[torch.Tensor]],
) -> None:  # fmt: skip
    given = tensors_of(found)
    offs = [distance(a, b) for a, b in zip(given, expected, strict=False)]
    offs = offs if len(given) == len(expected) else [float("inf")]
    off = max(offs)
    if not any(_beyond_rounding(network, inputs, each, index) for index, each in enumerate(offs)):
        return
    steps = record(network.module, lambda: network(inputs))
    where = first_missing(steps, values(), lambda a, b: distance(a, b) <= 10 * ROUNDING)
    size = f"off by {off:.2g} of the largest output" if np.isfinite(off) else "of another shape or not finite"
    raise Disagreement(
        f"{form} does not compute what the network does: {size} on a batch of {len(inputs)}{_first(where)}; "
        "write that part with other operators, or report it as a fault of tracing"
    )


def _beyond_rounding(network: PlainForm, inputs: torch.Tensor, off: float, output: int = 0) -> bool:
    """Whether a difference, as a share of the largest output, is more than float32 arithmetic explains.

    output: which of the network's, by number.
    """
    return off > ROUNDING and off > min(_noise(network, inputs, output), _WIDEST)


def _noise(network: PlainForm, inputs: torch.Tensor, output: int) -> float:
    """Ten times what float32 arithmetic costs this network, as a share of its largest output: against float64.

    0 where the network does not run in float64. It grows with depth; other forms round in other places.
    """
    try:
        precise = copied(network.module).double()
        with undisturbed():
            exact = tensors_of(precise(inputs.double() if inputs.is_floating_point() else inputs.clone()))[output]
    except Exception:  # noqa: BLE001 user code that insists on float32
        return 0.0
    return 10 * distance(tensors_of(network(inputs))[output], exact)


def _graph_values(graph: fx.GraphModule, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Every tensor that the graph computes."""
    values: list[torch.Tensor] = []

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            values.extend(tensor.clone() for tensor in tensors_of(result))
            return result

    with undisturbed():
        Keeping(graph).run(inputs.clone())
    return values


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load the network's float file: {first_line(error)}") from error


def _run_file(session: ort.InferenceSession, inputs: torch.Tensor) -> list[torch.Tensor]:
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    except Exception as error:
        raise UserError(
            f"ONNX Runtime fails on the network's float file with a batch of {len(inputs)}: {first_line(error)}"
        ) from error
    return [torch.from_numpy(np.asarray(output)) for output in outputs]


def _file_values(model: onnx.ModelProto, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The inputs and every float tensor that the file computes, each made an output."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name for value in shown.graph.output}
    typed = onnx.shape_inference.infer_shapes(shown).graph.value_info
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    for node in shown.graph.node:
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name in floats - known)
    return [inputs, *_run_file(_session(shown.SerializeToString()), inputs)]
