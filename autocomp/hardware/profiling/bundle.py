"""A folder that measures kernels on a board which has Python, numpy and onnxruntime, and nothing of this package.

It holds the runner, a manifest, and the models of all chains. Weights are random, so they do not travel: models take
theirs from parts of one file, as ONNX external data, and the runner draws that file on the board. Parts of one model
never overlap, so its copies read as much memory as with weights of their own.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from autocomp.errors import UserError
from autocomp.hardware import runner
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.profiling.chains import REFERENCE, chain_copies
from autocomp.hardware.profiling.fill import MEASURED_OPS
from autocomp.hardware.table import KEY_COLUMNS
from autocomp.kernel import Kernel

RUNNER, README = "run.py", "README.md"
#: Constants below this many bytes stay in the model, where the optimizer may look at them.
_SMALL = 256
_ALIGNMENT = 64

_README = """# Latencies of {count} kernels of {name}

Needs Python 3.9 or later with numpy and onnxruntime: `pip install numpy onnxruntime`.
Run `python3 run.py` here; `--minutes 10` stops after that time. What was measured stays: a second call goes on.
Then, where autocomp is installed: `autocomp profile import THIS_FOLDER --name my_board`.
"""


@dataclass
class _Weights:
    """The file that all models share: as long in each kind as the model that needs most of it."""

    used: dict[str, int] = field(default_factory=dict)

    def share(self, model: bytes) -> onnx.ModelProto:
        """`model` with its large constants taken from the file; offsets are relative to the part of their kind."""
        proto = onnx.load_from_string(model)
        offsets: dict[str, int] = {}
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes < _SMALL:
                continue
            kind = _kind(values)
            offset = offsets.get(kind, 0)
            offsets[kind] = offset + -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
            _point(tensor, kind, offset, values.nbytes)
        for kind, length in offsets.items():
            self.used[kind] = max(self.used.get(kind, 0), length)
        return proto

    def place(self, proto: onnx.ModelProto) -> bytes:
        """The model with offsets into the whole file, once all models have been shared."""
        begins = dict(zip(self.used, accumulate(self.used.values(), initial=0), strict=False))
        for tensor in proto.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                kind, offset, length = (entry.value for entry in tensor.external_data)
                _point(tensor, runner.WEIGHTS, begins[kind] + int(offset), int(length))
        return bytes(proto.SerializeToString(deterministic=True))

    @property
    def regions(self) -> list[dict[str, Any]]:
        return [{"kind": kind, "bytes": length} for kind, length in self.used.items()]


def _kind(values: NDArray[Any]) -> str:
    """Which random numbers stand for a constant: those that a kernel treats in the same way."""
    if not values.any():
        return "zeros"
    if values.dtype == np.float32:
        return "positive" if values.min() > 0 else "normal"
    return "small" if values.dtype == np.int32 else "bytes"


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a constant say where in which file its bytes are."""
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def key_of(kernel: Kernel) -> str:
    """The kernel as the runner names it: the first columns of its row in a table."""
    return ",".join(str(getattr(kernel, column)) for column in KEY_COLUMNS)


def write_bundle(folder: Path, profile: HardwareProfile, space: str, kernels: Sequence[Kernel]) -> Mapping[str, Any]:
    """Writes the bundle for `kernels`, in the order in which they are to be measured; returns its manifest.

    profile: whose capabilities the imported profile will have. space: what the kernels are of, in words. Results
    that an earlier bundle left in `folder` stay where they are: the runner refuses them if they are of other kernels.
    UserError if `folder` holds something else than a bundle.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / runner.MANIFEST).exists())):
        raise UserError(f"--out: {folder} is there and is no bundle; choose a folder that is new or empty")
    weights, protos, entries = _Weights(), {}, []
    kernels = [kernel for kernel in kernels if kernel.op in MEASURED_OPS]
    for index, kernel in enumerate([REFERENCE, *kernels]):
        entry: dict[str, Any] = {"kernel": key_of(kernel)}
        short, long = chain_copies(kernel)
        try:
            plain, blocked = ([kernel_model(kernel, n, blocked=b) for n in (short, long)] for b in (False, True))
        except ValueError:
            continue  # so few distinct copies can be built that there is no chain of them
        for layout, models in (("plain", plain), ("blocked", blocked)):
            shared = "plain" if models == plain else layout
            entry[layout] = [f"{index:05}-{length}-{shared}.onnx" for length in ("short", "long")]
            protos.update({name: weights.share(model) for name, model in zip(entry[layout], models, strict=True)})
        entries.append({**entry, "more": long - short})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as models_file:
        for name, proto in protos.items():
            models_file.writestr(zipfile.ZipInfo(name), weights.place(proto), zipfile.ZIP_DEFLATED)
    digest = hashlib.sha256(archive.getvalue() + json.dumps(entries).encode())
    manifest = {
        "format": runner.FORMAT,
        "bundle": digest.hexdigest()[:16],
        "base": profile.name,
        "space": space,
        "reference": entries[0],
        "kernels": entries[1:],
        "weights": weights.regions,
    }
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(runner.__file__, folder / RUNNER)
    (folder / runner.MODELS).write_bytes(archive.getvalue())
    (folder / runner.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    (folder / README).write_text(_README.format(count=len(kernels), name=space), encoding="utf-8")
    return manifest
