"""Bytes that Vela's weight encoder leaves of a layer, learned from the rows of a table.

The encoder (a Golomb-Rice code over a palette) takes so many bits a weight for each coding, whatever the layer. Small
layers take more, since channels are padded by zeros to the blocks in which the array takes them; and most where no
level of the coding is zero, so that the padding is one more. What terms do not tell is learned from near rows.
"""

from collections.abc import Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.neighbours import Neighbours, fit_terms
from autocomp.hardware.positions import position, sizes, up
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel, WeightCoding

Floats = NDArray[np.float64]

#: Rows of a coding whose median is its bits a weight: those with the most weights, where padding tells least.
_LARGEST_ROWS = 8
#: Of a codebook, or a grid of 2 bits, that has no level at zero.
_FEW_LEVELS_BITS = 2
#: Distance of a doubling of the bits, and of whether a level is zero.
_WORTH_BITS, _WORTH_ZERO = 1.0, 2.0


class EncodedWeights:
    """Encoded bytes of the weights of any kernel."""

    def __init__(self, table: LatencyTable) -> None:
        rows = {k: r.parts.encoded_bytes for k, r in table.items() if k.coding is not None and r.parts is not None}
        self._bits: dict[WeightCoding, float] = {}
        by_coding: dict[WeightCoding, list[Kernel]] = {}
        for kernel in sorted(rows):
            assert kernel.coding is not None
            by_coding.setdefault(kernel.coding, []).append(kernel)
        for coding, kernels in by_coding.items():
            largest = sorted(kernels, key=lambda kernel: -kernel.weight_count)[:_LARGEST_ROWS]
            self._bits[coding] = float(np.median([8 * rows[k] / k.weight_count for k in largest]))
        self._fits: dict[str, tuple[Floats, Neighbours]] = {}
        for op in sorted({kernel.op for kernel in rows}):
            kernels = [kernel for kernel in rows if kernel.op == op]
            stored = np.array([max(rows[kernel], 1) for kernel in kernels], np.float64)
            terms = self._terms(kernels)
            weights, scale = fit_terms(terms, stored)
            fit = weights / scale
            self._fits[op] = fit, Neighbours(self._position(kernels), np.log(stored / np.maximum(terms @ fit, 1.0)))

    def bits(self, coding: WeightCoding) -> float:
        """Encoded bits a weight in a large layer; between the nearest codings where the table lacks this one."""
        if coding in self._bits:
            return self._bits[coding]
        known = sorted((_nominal_bits(other), bits) for other, bits in self._bits.items())
        return float(np.interp(_nominal_bits(coding), *np.array(known).T)) if known else 8.0

    def bytes(self, kernels: Sequence[Kernel]) -> Floats:
        """Of the weights of each kernel, without scales and biases; 0 for what has none. Shape (n,)."""
        found = np.zeros(len(kernels))
        for op in {kernel.op for kernel in kernels if kernel.coding is not None}:
            places = [place for place, kernel in enumerate(kernels) if kernel.op == op]
            ours = [kernels[place] for place in places]
            if op in self._fits:
                fit, neighbours = self._fits[op]
                found[places] = np.maximum(self._terms(ours) @ fit, 1.0) * neighbours.predict(self._position(ours))[0]
            else:
                found[places] = [k.weight_count * self.bits(k.coding or WeightCoding()) / 8 for k in ours]
        return found

    def _position(self, kernels: Sequence[Kernel]) -> Floats:
        codings = [kernel.coding or WeightCoding() for kernel in kernels]
        bits = _WORTH_BITS * np.log2([self.bits(coding) for coding in codings])
        no_zero = [_WORTH_ZERO * _lacks_zero(coding) for coding in codings]
        return np.concatenate([position(sizes(kernels)), np.stack([bits, np.array(no_zero)], axis=1)], axis=1)

    def _terms(self, kernels: Sequence[Kernel]) -> Floats:
        """What the bytes are a non-negative combination of: weights at their bits, padded and not, and blocks."""
        inputs, outputs, window = (
            np.array([getattr(kernel, name) for kernel in kernels], np.float64)
            for name in ("in_channels", "out_channels", "window")
        )
        count = np.array([kernel.weight_count for kernel in kernels], np.float64)
        bits = np.array([self.bits(kernel.coding or WeightCoding()) for kernel in kernels])
        padded = np.where(count == outputs * window, 1.0, up(inputs, 8)) * up(outputs, 8) * window
        no_zero = np.array([_lacks_zero(kernel.coding or WeightCoding()) for kernel in kernels], np.float64)
        ragged = no_zero * (padded > count) * count
        return np.stack([count * bits / 8, padded * bits / 8, ragged, up(outputs, 16), np.ones_like(bits)], axis=1)


def _lacks_zero(coding: WeightCoding) -> bool:
    """Whether no weight is zero: few levels lie on both sides of it."""
    return coding.sparsity == 0 and (coding.decision.stored_bits or 8) <= _FEW_LEVELS_BITS


def _nominal_bits(coding: WeightCoding) -> float:
    """Bits of a code that spends its stored bits on what is not zero, and the entropy of where zeros lie on that."""
    zeros = coding.sparsity
    where = 0.0 if zeros == 0 else -zeros * log2(zeros) - (1 - zeros) * log2(1 - zeros)
    return (1 - zeros) * (coding.decision.stored_bits or 8) + where
