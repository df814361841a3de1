"""What tracing wrote, kept in the user's cache folder by what the network is: it takes seconds to make.

An entry is found by a digest of everything that shapes it: the stored tensors of the network and their names, the code
of its modules, every operator that it executes on two batches with all arguments, and the versions of what traces.
Whoever reads an entry holds it against the network again, so that the digest alone need not be trusted.
"""

import hashlib
import inspect
import json
import os
import shutil
import stat
import tempfile
import time
import types
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autocomp.compress.plain_form import PlainForm, undisturbed

#: Bounds of the cache; what was used last is kept.
MOST_ENTRIES = 32
MOST_BYTES = 1 << 30
_MANIFEST = "manifest.json"
_PARTIAL = ".partial-"


class TraceCache:
    """Folders of files by digest. It never fails: what cannot be read or written is as if it were not there."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(platformdirs.user_cache_dir("autocomp")) / "traced"

    def fetch(self, digest: str, place: Path) -> bool:
        """Copy an entry's files to `place`; whether there was a whole one. A damaged one is removed."""
        entry = self.folder / digest
        try:
            if not self._is_private() or not entry.is_dir():
                return False
            sums = json.loads((entry / _MANIFEST).read_text())
            for name, expected in sums.items():
                content = (entry / Path(name).name).read_bytes()
                if hashlib.sha256(content).hexdigest() != expected:
                    raise ValueError(f"{name} is damaged")
                (place / Path(name).name).write_bytes(content)
            os.utime(entry)
        except (OSError, ValueError, AttributeError, TypeError):
            self.forget(digest)
            return False
        return True

    def keep(self, digest: str, place: Path, names: Sequence[str]) -> None:
        """Store the files `names` of `place`, whole or not at all."""
        partial: Path | None = None
        try:
            if sum((place / name).stat().st_size for name in names) > MOST_BYTES:
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._is_private():
                return
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
            sums = {}
            for name in names:
                content = (place / name).read_bytes()
                (partial / name).write_bytes(content)
                sums[name] = hashlib.sha256(content).hexdigest()
            (partial / _MANIFEST).write_text(json.dumps(sums))
            partial.rename(self.folder / digest)  # fails where another process was first, which is as good
            self._shrink()
        except OSError:
            pass
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def forget(self, digest: str) -> None:
        entry = self.folder / digest
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)

    def _is_private(self) -> bool:
        """Whether the folder is the user's own, and closed to others: a program that is loaded is code."""
        try:
            status = self.folder.lstat()
        except OSError:
            return False
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return False
        if status.st_mode & 0o077:
            # Others may have written while it was open.
            for path in list(self.folder.iterdir()):
                self.forget(path.name)
            self.folder.chmod(0o700)
        return True

    def _shrink(self) -> None:
        """Remove the entries that were used longest ago, and what a process that was killed left."""
        entries = sorted((p for p in self.folder.iterdir()), key=lambda p: p.stat().st_mtime, reverse=True)
        total = kept = 0
        for path in entries:
            if path.name.startswith(_PARTIAL):
                if path.stat().st_mtime < time.time() - 3600:
                    self.forget(path.name)
                continue
            total += sum(file.stat().st_size for file in path.iterdir())
            kept += 1
            if total > MOST_BYTES or kept > MOST_ENTRIES:
                self.forget(path.name)


# ---- the digest ----------------------------------------------------------------------------------------------------
def digest_of(network: PlainForm, example: torch.Tensor) -> str:
    """SHA-256 of `network` as it is traced on `example`, (n, …), and of what traces it."""
    digest = hashlib.sha256()
    signature = f"{example.dtype} {example.shape[1:]} {network.outputs}"
    for line in (*_versions(), *_state(network.module), *_code(network.module), signature):
        digest.update(line.encode() + b"\n")
    names = {id(t): name for name, t in _stored(network.module)}
    for size in (2, 3):  # what depends on the size of the batch differs between the two
        batch = example[:1].repeat(size, *[1] * (example.ndim - 1))
        with undisturbed(), _Log(digest, {**names, id(batch): "the input"}) as log:
            result = network.module(batch)
            log.write("returns", result)
    return digest.hexdigest()


class _Log(TorchDispatchMode):
    """Writes each operator that is executed, with its arguments, to a digest."""

    def __init__(self, digest: Any, names: dict[int, str]) -> None:
        super().__init__()
        self.digest, self.names = digest, dict(names)
        self.alive: list[torch.Tensor] = []  # an identity is one of a living tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.write(str(func), (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self.names:
                self.names[id(leaf)] = f"result {len(self.alive)}"
                self.alive.append(leaf)
            elif not isinstance(leaf, torch.Tensor):
                self.digest.update(repr(leaf).encode())  # what Python may decide by
        return result

    def write(self, what: str, values: object) -> None:
        leaves, structure = pytree.tree_flatten(values)
        self.digest.update(f"{what} {structure} {[self._named(leaf) for leaf in leaves]}\n".encode())

    def _named(self, leaf: object) -> str:
        if not isinstance(leaf, torch.Tensor):
            return repr(leaf)
        if id(leaf) not in self.names:
            self.names[id(leaf)] = _content(leaf)
            self.alive.append(leaf)
        return self.names[id(leaf)]


def _content(tensor: torch.Tensor) -> str:
    with torch.utils._python_dispatch._disable_current_modes():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {hashlib.sha256(raw).hexdigest()}"


def _stored(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _state(module: nn.Module) -> Iterable[str]:
    """The stored tensors by name, those that are shared as such."""
    first: dict[int, str] = {}
    for name, tensor in _stored(module):
        owner = first.setdefault(id(tensor), name)
        yield f"{name} {_content(tensor) if owner == name else owner}"


def _code(module: nn.Module) -> Iterable[str]:
    """The modules by name and kind, with the code of the kinds and of the files that define them."""
    kinds: dict[type, None] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        yield f"{name} {type(part).__qualname__} {part.extra_repr()}"
        kinds.update(dict.fromkeys(type(part).__mro__))
    files: dict[str, None] = {}
    for kind in kinds:
        if kind.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for key, value in sorted(vars(kind).items()):
            function = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else None
            if isinstance(function, types.FunctionType):
                yield f"{kind.__qualname__}.{key} {_instructions(function.__code__)}"
        try:
            files[inspect.getsourcefile(kind) or ""] = None
        except (TypeError, OSError):
            continue  # defined in a console: its code alone is known
    for file in files:
        if Path(file).is_file():
            yield f"{Path(file).name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _instructions(code: types.CodeType) -> str:
    inner = [_instructions(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, inner)).encode()).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    """Versions of what traces, and of this package's own part in it."""
    own = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        own.update(file.read_bytes())
    found = [own.hexdigest()]
    for package in ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} of another name")  # onnxruntime-gpu
    return tuple(found)
