"""Bits that Vela's weight encoder leaves of a weight, by how the weights are coded and how their zeros lie.

    python experiments/weight_coding/encoded.py [--config Ethos_U55_256]

Gaussian weights of a 3×3 convolution from 64 to 64 channels and of a 1×1 from 256 to 256, quantized as a search
quantizes them. Prints a JSON line a coding; blocks are named outputs × inputs.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch
from ethosu.vela.api import NpuAccelerator, NpuBlockTraversal, npu_encode_weights
from numpy.typing import NDArray

from autocomp.compress.masks import kept_weights
from autocomp.compress.quantize import WeightQuantizer
from autocomp.policy import CLUSTERS, INT8, WEIGHT_BITS, LayerPolicy, clustered

SHAPES = ((64, 64, 3, 3), (256, 256, 1, 1))
BLOCKS = ((1, 8), (1, 16), (1, 32), (8, 1), (16, 1), (8, 8), (4, 4))
DEPTH = 16  # output channels that the encoder takes at once; 64 come out within 2 % of it


def encoded_bits(levels: NDArray[np.int8], config: str) -> float:
    """Bits a weight of levels (out, in, height, width)."""
    volume = np.ascontiguousarray(levels.transpose(0, 2, 3, 1)).astype(np.int16)
    parts = (
        npu_encode_weights(
            NpuAccelerator[config], volume[start : start + DEPTH], (1, 1), 8, DEPTH, False,
            NpuBlockTraversal.DEPTH_FIRST,
        )
        for start in range(0, len(volume), DEPTH)
    )  # fmt: skip
    return 8 * sum(len(part) for part in parts) / levels.size


def levels_of(weight: torch.Tensor, decision: LayerPolicy) -> NDArray[np.int8]:
    quantizer = WeightQuantizer(weight, decision)
    assert quantizer.grid is not None
    levels = quantizer.grid.round(weight / quantizer.log_scale.detach().exp())
    return (levels if quantizer.mask is None else levels * quantizer.mask).to(torch.int8).numpy()


def in_blocks(weight: torch.Tensor, sparsity: float, height: int, width: int) -> torch.Tensor:
    """`weight` with zeros in blocks of `height` outputs × `width` inputs, the strongest blocks kept."""
    blocks = weight.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    norms = blocks.square().sum(dim=(1, 3), keepdim=True)
    mask = torch.zeros(norms.numel(), dtype=torch.bool)
    mask[norms.flatten().topk(kept_weights(norms.numel(), sparsity)).indices] = True
    return (blocks * mask.reshape(norms.shape)).flatten(2, 3).flatten(0, 1)


def rows(config: str) -> Iterator[dict[str, object]]:
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in SHAPES]

    def row(name: str, levels: list[NDArray[np.int8]]) -> dict[str, object]:
        return {"coding": name, "bits": [round(encoded_bits(each, config), 2) for each in levels]}

    plain = [LayerPolicy(bits, "int8") for bits in WEIGHT_BITS] + [clustered(count) for count in CLUSTERS]
    sparse = [d.with_zeros(s) for d in (INT8, LayerPolicy(4, "int8"), clustered(16)) for s in (0.5, 0.75, 0.9)]
    for decision in (*plain, *sparse):
        yield row(str(decision), [levels_of(weight, decision) for weight in weights])
    for bits in (8, 4):
        for sparsity in (0.5, 0.75, 0.9):
            for height, width in BLOCKS:
                zeroed = [in_blocks(weight, sparsity, height, width) for weight in weights]
                quantized = [levels_of(each, LayerPolicy(bits, "int8")) for each in zeroed]
                yield row(f"w{bits}a8 {sparsity:.0%} in {height}×{width}", quantized)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="Ethos_U55_256", help="an NpuAccelerator of Vela")
    for found in rows(parser.parse_args().config):
        print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
