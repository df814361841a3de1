"""A bundle executes what this machine would, with weights that do not travel."""

import io
import itertools
import json
import zipfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import small_bundle

from autocomp.errors import UserError
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.bundle import key_of, write_bundle
from autocomp.hardware.profiling.chains import REFERENCE, chain_copies
from autocomp.hardware.runner import Bundle, keeps_blocks
from autocomp.kernel import Kernel

#: A runtime that keeps images in blocks knows both; another refuses models that ask for blocks.
LAYOUTS = ("plain", "blocked") if keeps_blocks(kernel_model(REFERENCE)) else ("plain",)


def executed(model: bytes | Path, folder: Path) -> list[str]:
    """Operators that ONNX Runtime runs after its optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
    graph = onnx.load(str(folder / "optimized.onnx"), load_external_data=False).graph
    return sorted(node.op_type for node in graph.node)


def test_every_model_is_executed_as_with_weights_of_its_own(tmp_path: Path) -> None:
    folder = small_bundle.make(tmp_path / "bundle")
    bundle = Bundle(folder)  # draws the weights
    archive = zipfile.ZipFile(folder / "kernels.zip")
    for kernel, entry in zip(small_bundle.KERNELS, bundle.manifest["kernels"], strict=True):
        assert entry["kernel"] == key_of(kernel)
        for layout in LAYOUTS:
            (folder / "model.onnx").write_bytes(archive.read(entry[layout][1]))
            ours = kernel_model(kernel, chain_copies(kernel)[1], blocked=layout == "blocked")
            assert executed(folder / "model.onnx", tmp_path) == executed(ours, tmp_path), kernel


def test_parts_of_the_weights_lie_inside_the_file_and_never_overlap_within_a_model(tmp_path: Path) -> None:
    folder = small_bundle.make(tmp_path / "bundle")
    Bundle(folder)
    size = (folder / "weights.bin").stat().st_size
    external = 0
    archive = zipfile.ZipFile(folder / "kernels.zip")
    for name in archive.namelist():
        parts = []
        for tensor in onnx.load(io.BytesIO(archive.read(name)), load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                assert where["location"] == "weights.bin"
                parts.append((int(where["offset"]), int(where["offset"]) + int(where["length"])))
        parts.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(parts))
        assert not parts or parts[-1][1] <= size
        external += len(parts)
    assert external > len(small_bundle.KERNELS)


def test_it_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    kernels = [Kernel("conv", "fp32", 256, 32 * i, 7, 7, 3, 3) for i in range(1, 9)]  # 10 MB of weights in their chains
    first, second = (small_bundle.make(tmp_path / name, kernels) for name in ("a", "b"))
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"run.py", "manifest.json", "kernels.zip", "README.md"}
    assert sum(map(len, contents[0].values())) < 60_000
    assert contents[0]["README.md"].decode().count("\n") == 5


def test_it_is_not_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="is no bundle"):
            write_bundle(out, find_profile("mobile_arm"), "space", small_bundle.KERNELS)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_bundle_has_another_identity(tmp_path: Path) -> None:
    folders = [small_bundle.make(tmp_path / str(n), small_bundle.KERNELS[:n]) for n in (2, 3)]
    first, second = (json.loads((folder / "manifest.json").read_text())["bundle"] for folder in folders)
    assert first != second
