"""A user's network in plain form: a copy in evaluation mode, float32, on the CPU, without masks, wrappers and hooks.

What a network says is what its `forward` computes in evaluation mode, whatever stands between it and its stored
weights. Everything that can be computed once is made permanent in the copy; what changes results and cannot be is
kept, and traced with the rest; what cannot be either is refused in a line. The user's module stays as it is.
"""

import functools
import keyword
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from autocomp.compress.copying import copied
from autocomp.compress.full_precision import in_float32, spelled
from autocomp.errors import UserError

#: Share of the largest output that float32 arithmetic in another order may explain.
ROUNDING = 1e-4


#: What the names of a graph's own attributes are read from.
_EMPTY_GRAPH = fx.GraphModule(nn.Module(), fx.Graph())


@dataclass(frozen=True)
class PlainForm:
    """A network as compression takes it. notes: what was done to it that its owner should know, a sentence each."""

    module: nn.Module
    notes: tuple[str, ...] = ()

    def __call__(self, inputs: torch.Tensor) -> object:
        """What the network returns for (n, …) inputs, which are not changed."""
        with undisturbed():
            return self.module(inputs.clone())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, networks run without gradients or compiler, and the caller's random numbers stay where they were."""
    # Where nothing imported the compiler, nothing is compiled; to import it takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), eager:
        yield


def plain_form(module: nn.Module, example: torch.Tensor) -> PlainForm:
    """`module` in plain form. example: (n, …) input with n ≥ 1.

    Raises UserError where it has none; its line says what to hand over instead.
    """
    _refuse_kinds(module)
    _refuse_values(module)
    network = _evaluating(copied(module))
    notes = _cast(network)
    form = _precision(network, example, notes)
    before = _output(form, example)
    made = _make_permanent(network)
    if made and before is not None:
        after = _output(form, example)
        if after is None or not alike(before, after):
            raise UserError(
                f"making {made[0]} permanent changes the network's output: remove it from the network "
                "(prune.remove, remove_parametrizations, remove_weight_norm) before it is handed over"
            )
    # Masks and norms are invisible once they are permanent: nothing to say. Hooks are code, and may have been meant.
    dropped = _drop_idle_hooks(form, example)
    return PlainForm(network, (*form.notes, *dropped))


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line and without colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def tensors_of(result: object) -> list[torch.Tensor]:
    """The tensors in what a network returns."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected value; infinite where shapes differ or a value is NaN."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = found.detach().double(), expected.detach().double()
    difference = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities are equal
    scale = float(b.abs().nan_to_num(posinf=0.0).max())
    largest = float(difference.nan_to_num(nan=float("inf")).max())
    return largest / scale if scale else (0.0 if largest == 0 else float("inf"))


def alike(found: object, expected: object) -> bool:
    """Whether two results of a network are the same up to rounding."""
    a, b = tensors_of(found), tensors_of(expected)
    return len(a) == len(b) and all(distance(x, y) <= ROUNDING for x, y in zip(a, b, strict=True))


def _output(form: PlainForm, example: torch.Tensor) -> object | None:
    """What the network returns, None where it fails: tracing says so, with more to say about it."""
    try:
        return form(example)
    except Exception:  # noqa: BLE001 user code
        return None


# ---- what has no plain form ----------------------------------------------------------------------------------------
def _refuse_kinds(module: nn.Module) -> None:
    if any((torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)):
        raise UserError(
            "a forward hook is registered for all modules (register_module_forward_hook): remove it before the search"
        )
    for name, part in module.named_modules(remove_duplicate=True):
        reason = _refusal(part)
        if reason is not None:
            raise UserError(f"{_called(name)} {reason}")
        for child in (*part._modules, *part._parameters, *part._buffers):
            # torch.export writes the network as Python code, whose module has attributes of its own.
            if keyword.iskeyword(child) or (not name and hasattr(_EMPTY_GRAPH, child)):
                what = f"{name}.{child}" if name else child
                raise UserError(f"{what} cannot be traced under this name, which is Python's or torch.fx's: rename it")


def _refusal(part: nn.Module) -> str | None:
    """Why a module cannot be brought into plain form, as the rest of a sentence; None where it can."""
    kind, home = type(part).__name__, type(part).__module__
    if isinstance(part, torch.jit.ScriptModule):
        return "is compiled by torch.jit: hand over the nn.Module that it was made from"
    if isinstance(part, torch.ao.quantization.FakeQuantizeBase | torch.ao.quantization.ObserverBase) or ".qat" in home:
        return f"is prepared for quantization ({kind}): hand over the float network, as it was before prepare"
    if home.startswith(("torch.ao.nn", "torch.nn.quantized")) and "quantiz" in home:
        return f"is quantized already ({kind}): hand over the float network"
    if kind in ("FullyShardedDataParallel", "FSDPModule"):
        return "is sharded over processes: hand over the whole network, with its state dict gathered"
    for tensor_name, tensor in _own_tensors(part):
        if nn.parameter.is_lazy(tensor):
            return f"has no {tensor_name} yet ({kind}): run the network once on an example before it is handed over"
        if tensor.is_meta:
            return f"has no values ({tensor_name} is on the meta device): load its weights before it is handed over"
        if tensor.is_quantized:
            return f"holds quantized values ({tensor_name}): hand over the float network"
        if tensor.layout != torch.strided:
            return f"holds a sparse tensor ({tensor_name}): hand over the network with {tensor_name}.to_dense()"
        if is_traceable_wrapper_subclass(tensor):
            return (
                f"holds a {type(tensor).__name__} ({tensor_name}), which is no plain tensor: hand over the network as "
                "it was before it was sharded or quantized"
            )
    return None


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for stored in (part._parameters, part._buffers):
        yield from ((name, tensor) for name, tensor in stored.items() if tensor is not None)


def _called(path: str) -> str:
    return f"layer {path}" if path else "the network"


def _refuse_values(module: nn.Module) -> None:
    """UserError where a stored value is NaN or infinite, or would be as float32."""
    for path, part in module.named_modules():
        for name, tensor in _own_tensors(part):
            if not tensor.is_floating_point():
                continue
            values = tensor.detach().float()
            bad = ~torch.isfinite(values)
            if name in part._buffers and not isinstance(part, nn.modules.batchnorm._NormBase):
                bad &= values != -torch.inf  # a mask of attention
            count = int(bad.sum())
            if not count:
                continue
            if torch.isnan(values).any():
                what = "NaN"
            elif torch.isfinite(tensor).all():
                what = "values beyond the range of float32"
            else:
                what = "infinity"
            raise UserError(
                f"{_called(path)}: its {name} holds {what} ({count:,} of {tensor.numel():,} values): the network is "
                "not trained, or its training diverged"
            )


# ---- mode, device, precision ---------------------------------------------------------------------------------------
def _evaluating(network: nn.Module) -> nn.Module:
    """In evaluation mode on the CPU, without backward hooks, which have no say in a result."""
    if isinstance(network, fx.GraphModule):
        # Anew: the module of an exported program checks that inputs are like its example, and refuses eval().
        for node in list(network.graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                network.graph.erase_node(node)
        network = fx.GraphModule(network, network.graph)
    network = network.eval()
    for part in network.modules():
        part._backward_hooks.clear()
        part._backward_pre_hooks.clear()
        part.__dict__.pop("_compiled_call_impl", None)  # Module.compile
    return network.cpu()


def _cast(network: nn.Module) -> list[str]:
    """Cast parameters, buffers and tensors that modules keep as attributes to float32 on the CPU; what to say of it."""
    other = {
        tensor.dtype
        for part in network.modules()
        for _, tensor in _own_tensors(part)
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    network.float()
    for part in network.modules():
        for key, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                tensor = value.detach().cpu()
                part.__dict__[key] = tensor.float() if tensor.is_floating_point() else tensor
    if not other:
        return []
    return [f"weights in {spelled(list(other))} were cast to float32, in which the network is traced and compressed"]


def _precision(network: nn.Module, example: torch.Tensor, notes: list[str]) -> PlainForm:
    """The form of a network whose code may ask for other types than float32."""
    try:
        with undisturbed(), in_float32() as mode:
            network(example.clone())
    except Exception:  # noqa: BLE001 user code, which capture runs again and reports
        return PlainForm(network, tuple(notes))
    if not mode.asked_for and torch.get_default_dtype() == torch.float32:
        return PlainForm(network, tuple(notes))
    if mode.asked_for:
        notes = [*notes, f"what the network computes in {spelled(list(mode.asked_for))} is computed in float32"]
    _run_in_float32(network)
    return PlainForm(network, tuple(notes))


def _run_in_float32(network: nn.Module) -> None:
    """Have its forward run so, and nothing else: the exporter works with types of its own."""
    kind = type(network)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        with in_float32():
            return kind.forward(self, *args, **kwargs)

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


# ---- weights that are made anew at every call ----------------------------------------------------------------------
def _make_permanent(network: nn.Module) -> list[str]:
    """Store what masks, norms and parametrizations say; what was made permanent, by name.

    Hooks run in the order in which they were registered, so the last is undone first: it may make the values that one
    before it reads.
    """
    made = []
    with torch.no_grad():
        for path, part in list(network.named_modules()):
            for key, hook in reversed(list(part._forward_pre_hooks.items())):
                if not isinstance(hook, prune.BasePruningMethod | WeightNorm | SpectralNorm):
                    continue
                hook.remove(part)
                if isinstance(hook, SpectralNorm):
                    part._state_dict_hooks.clear()
                    part._load_state_dict_pre_hooks.clear()
                del part._forward_pre_hooks[key]
                made.append(f"{type(hook).__name__} of {_called(path)}")
            if parametrize.is_parametrized(part):
                # Each parametrized module has a class of its own, but a copy shares it, and removal empties it.
                kind = type(part)
                own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
                part.__class__ = type(kind.__name__, kind.__bases__, own)
                for name, parametrization in list(part.parametrizations.items()):
                    of_parameters = bool(list(parametrization.parameters(recurse=False)))
                    parametrize.remove_parametrizations(part, name, leave_parametrized=True)
                    if of_parameters and name in part._buffers:  # what two parameters make is left as a buffer
                        value = part._buffers.pop(name)
                        part.register_parameter(name, nn.Parameter(value))
                    made.append(f"the parametrization of {name} in {_called(path)}")
    return made


# ---- hooks ---------------------------------------------------------------------------------------------------------
def _drop_idle_hooks(form: PlainForm, example: torch.Tensor) -> list[str]:
    """Take out the forward hooks that change no result: they would see the tracer's tensors, which have no values.

    The others stay, and are traced with the network. Returns what to say.
    """
    hooked = [
        (path, hooks, key)
        for path, part in form.module.named_modules()
        for hooks in (part._forward_pre_hooks, part._forward_hooks)
        for key in list(hooks)
    ]
    before = _output(form, example) if hooked else None
    if before is None:
        return []
    dropped = []
    for path, hooks, key in hooked:
        order = list(hooks.items())
        del hooks[key]
        if alike(_output(form, example), before):
            dropped.append(path)
        else:
            hooks.clear()
            hooks.update(order)
    paths = list(dict.fromkeys(dropped))
    if not paths:
        return []
    names = ", ".join(_called(path) for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return [f"forward hooks of {names} change no result and were left out"]
