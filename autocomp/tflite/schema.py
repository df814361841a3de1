"""The published TFLite schema as generated classes. They come with LiteRT, an optional package."""

import importlib
from typing import Any

from autocomp.errors import MissingPackage

#: What `pip install` gets LiteRT and Arm's Vela by.
EXTRA = "autocomp[npu]"
#: The four bytes behind the root offset that say what the file is.
FILE_IDENTIFIER = b"TFL3"


def load_schema() -> Any:
    """The module of generated classes (`ModelT`, `TensorT`, …). MissingPackage where LiteRT is not installed."""
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        raise MissingPackage(EXTRA, "reading and writing .tflite files") from None
