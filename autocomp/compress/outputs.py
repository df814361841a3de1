"""What a network returns, as a flat tuple of tensors: first the output that is scored, behind it the others.

A dict, a tuple, a data class or a nest of them all come to a list of tensors with a name each, by which the written
file calls them. One of them is scored and distilled; the others are computed in the file as the network computes them.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from autocomp.errors import UserError

#: Names of the output that counts where nobody says which, the likeliest first.
SCORED = ("logits", "out", "output", "outputs", "prediction", "predictions", "pred", "preds", "scores")
_MOST_NAMES = 6


@dataclasses.dataclass(frozen=True)
class Returned:
    """Names of the tensors that a network returns, the scored one first. () where it returns one tensor alone.

    notes: what its owner should know of the choice.
    """

    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def first_output(result: Any) -> torch.Tensor:
    """The tensor that is scored and distilled, of what a flattened or traced network returns."""
    tensor = result[0] if isinstance(result, tuple | list) else result
    assert isinstance(tensor, torch.Tensor)
    return tensor


def flatten_outputs(network: nn.Module, results: tuple[object, object], inputs: Any, wanted: object) -> Returned:
    """Have the forward of `network` return its tensors in a flat tuple, the scored one first; names and notes.

    results: what it returns for the two different `inputs`. wanted: Task.output, the name or number of what is scored.
    A network that returns one tensor stays as it is. UserError where it returns no tensor, or nothing of that name.
    """
    result = results[0]
    if isinstance(result, torch.Tensor):
        if wanted not in (None, 0, -1):
            raise UserError(f"Task.output is {wanted!r}, but the network returns one tensor alone: leave it out")
        return Returned()
    found = [dict(_leaves(each)) for each in results]
    tensors = {path: value for path, value in found[0].items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(
            f"expected the network to return a tensor, or a dict, tuple or data class of tensors, got "
            f"{_described(result)}; wrap it in a module whose forward returns those"
        )
    names = _names(list(tensors))
    scored = _scored(tensors, names, wanted)
    kept, dropped = [scored], []
    for path in tensors:
        if path != scored:
            fault = _superfluous(path, kept, found, inputs, names)
            dropped += [f"{names[path]} ({fault})"] if fault else []
            kept += [] if fault else [path]
    paths = tuple(kept)
    _return_flat(network, paths, tuple(names[path] for path in paths))
    notes = []
    if len(tensors) > 1:
        others = _listed([names[path] for path in paths[1:]])
        chosen = "" if wanted is not None else " (Task.output names another)"
        stay = f"; {others} stay{'' if len(paths) > 2 else 's'} in the file unscored" if len(paths) > 1 else ""
        notes.append(f"of its outputs, {names[scored]} is scored and distilled{chosen}{stay}")
    odd = ["_".join(path) for path, value in found[0].items() if not isinstance(value, torch.Tensor)]
    if dropped:
        notes.append(f"outputs that the file leaves out: {_listed(dropped)}")
    if odd:
        notes.append(f"outputs that are no tensors are left out: {_listed(odd)}")
    return Returned(tuple(names[path] for path in paths), tuple(notes))


# ---- taking apart --------------------------------------------------------------------------------------------------
Path = tuple[str, ...]


def _leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """What is no container, with the keys that lead to it. None counts for nothing."""
    if value is None:
        return
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, (*path, key))


def _parts(value: object) -> list[tuple[str, object]] | None:
    """Keys and members of a container; None for anything else."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(key, getattr(value, key)) for key in value._fields]
    if isinstance(value, tuple | list):
        return [(str(index), part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def _names(paths: list[Path]) -> dict[Path, str]:
    """A name for each, of letters, digits and _: members of a tuple are called output_0, output_1, …"""
    names: dict[Path, str] = {}
    for path in paths:
        name = re.sub(r"\W", "_", "_".join(path), flags=re.ASCII) or "output"
        name = f"output_{name}" if name[0].isdigit() else name
        while name in names.values():
            name += "_"
        names[path] = name
    return names


def _scored(tensors: dict[Path, torch.Tensor], names: dict[Path, str], wanted: object) -> Path:
    """The output that counts. UserError where nothing is called as the task says."""
    paths = list(tensors)
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not -len(paths) <= wanted < len(paths):
            raise UserError(f"Task.output is {wanted}, but the network returns {len(paths)} tensors")
        return paths[wanted]
    if wanted is not None:
        for path in paths:
            if wanted in (names[path], ".".join(path), path[-1] if len(path) == 1 else None):
                return path
        raise UserError(f"Task.output is {wanted!r}, but the network returns {_listed([names[p] for p in paths])}")
    floats = [path for path in paths if tensors[path].is_floating_point()] or paths
    for name in SCORED:
        for path in floats:
            if path and path[-1].lower() == name:
                return path
    return floats[0]


def _superfluous(
    path: Path, kept: list[Path], found: list[dict[Path, object]], inputs: Any, names: dict[Path, str]
) -> str:
    """Why an output says nothing that is not known: it is another one, or the input itself; "" if it does."""

    def same(others: list[object]) -> bool:
        return all(
            isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
            for a, b in zip([each.get(path) for each in found], others, strict=True)
        )

    if same(list(inputs)):
        return "the input itself"
    twin = next((other for other in kept if same([each.get(other) for each in found])), None)
    return "" if twin is None else f"the same as {names[twin]}"


def _return_flat(network: nn.Module, paths: tuple[Path, ...], names: tuple[str, ...]) -> None:
    """Have the forward of a network return the tensors at `paths`. Its modules keep their names: no wrapper."""
    kind = type(network)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        found = dict(_leaves(kind.forward(self, *args, **kwargs)))
        missing = [name for path, name in zip(paths, names, strict=True) if path not in found]
        if missing:
            raise RuntimeError(f"the network returns {missing[0]} for some inputs only")
        flat = tuple(found[path] for path in paths)
        return flat if len(flat) > 1 else flat[0]

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _described(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} members that are no tensors"
    return f"a {type(value).__name__}"


def _listed(names: list[str]) -> str:
    shown = names[:_MOST_NAMES]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
