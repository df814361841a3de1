"""What a file needs to be computed exactly, written in its metadata and read back from there."""

from pathlib import Path

import numpy as np
import onnx
from onnx import StringStringEntryProto

from autocomp.compress.network import LayerWeights
from autocomp.hardware.arithmetic import EXACT_OPTION, LARGEST_SAFE_LEVEL

#: Metadata entry of a file whose integer products a stock session saturates on x86 without VNNI.
_ENTRY = ("x86_without_vnni", "=".join(EXACT_OPTION))


def may_saturate(layer: LayerWeights) -> bool:
    """Whether products of the layer's integers with uint8 may pass 2^15, two at a time, as int8 weights."""
    if not layer.integer or layer.levels is None:
        return False
    return bool(np.abs(layer.levels.astype(np.int16)).max(initial=0) > LARGEST_SAFE_LEVEL)


def limit_entry() -> StringStringEntryProto:
    """The metadata entry that says how the file is to be loaded there."""
    return StringStringEntryProto(key=_ENTRY[0], value=_ENTRY[1])


def has_limit(path: Path) -> bool:
    """Whether the ONNX file says that a stock session saturates on x86 without VNNI; False for other files."""
    if path.suffix != ".onnx":
        return False
    model = onnx.load(path, load_external_data=False)
    return any(entry.key == _ENTRY[0] for entry in model.metadata_props)
