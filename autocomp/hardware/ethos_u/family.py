"""Latency of NPU kernels between the rows of a table: what each part of the NPU is busy with, and the longest.

Vela estimates an operator by the largest of what the multiply-accumulate array, the memory of feature maps and the
memory of weights are busy with it. Here, each of the three is a non-negative combination of terms that follow from how
an Ethos-U works, fitted to the rows where that part decides; the largest of them is corrected by a Gaussian process
over the nearest rows, as everywhere (`hardware.neighbours`). Terms:

array    the array computes blocks of 2×2 positions and 8 output channels, each cycle for 8 inputs at one tap of the
         window ("depth first", inputs in steps of 32) or for 4 taps and 8 inputs ("part kernel first"), see Vela's
         `NpuBlockTraversal`; results leave at a rate of their own; weights are decoded at another.
memory   inputs, read again for each block of outputs, and outputs; buffered weights.
weights  encoded weights (`encoded`), scales and biases of each output channel.

How early the weights of an operator can be fetched depends on the one before it, so the figures of one kernel differ
with its surroundings; a row is their mean over the networks that it was seen in.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.ethos_u.encoded import EncodedWeights
from autocomp.hardware.ethos_u.pooling import pad_of
from autocomp.hardware.neighbours import Neighbours, fit_terms
from autocomp.hardware.positions import position, sizes, up
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: A part is fitted on rows where it takes at least this share of the latency; on all where they are too few.
_DECIDES, _FEWEST = 0.9, 10
_LEAST_US = 1e-3
#: Multiply-accumulates in the time that a result takes to leave, at 8, 4 and 2 results a cycle of 256.
_MACS_A_RESULT = (32, 64, 128)
#: Weights of the axes that tell kernels apart beyond their sizes: which part decides (a doubling), bits a weight.
_WORTH_WEIGHTS, _WORTH_MEMORY, _WORTH_BITS = 0.7, 0.5, 0.3
#: Of whether the image is padded by an operator of its own.
_WORTH_PADDED = 3.0


class EthosFamily:
    """The fitted model of one operator; see the module's docstring."""

    def __init__(self, op: str, kernels: Sequence[Kernel], table: LatencyTable, encoded: EncodedWeights) -> None:
        self.op = op
        self.kernels = tuple(kernels)
        self._encoded = encoded
        latencies = np.array([table[kernel].latency_us for kernel in kernels])
        parts = np.array([_parts_of(table, kernel) for kernel in kernels])  # (rows, 3)
        self._fits = []
        for part, terms in zip(parts.T, self._terms(kernels), strict=True):
            decides = part >= _DECIDES * latencies
            chosen = decides if decides.sum() >= _FEWEST else part > 0
            if chosen.any():
                weights, scale = fit_terms(terms[chosen], np.maximum(part[chosen], _LEAST_US))
                self._fits.append(weights / scale)
            else:
                self._fits.append(np.zeros(terms.shape[1]))
        modelled = self.parts(kernels)
        self.neighbours = Neighbours(self._position(kernels, modelled), np.log(latencies / _longest(modelled)))

    @property
    def surprises(self) -> Floats:
        return self.neighbours.surprises

    def parts(self, kernels: Sequence[Kernel]) -> Floats:
        """Microseconds that array, feature-map memory and weight memory are busy with each kernel, shape (n, 3)."""
        terms = self._terms(kernels)
        return np.stack([term @ fit for term, fit in zip(terms, self._fits, strict=True)], axis=1)

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        """Microseconds, half-width of the band in log-units, and whether it lies outside the measured range."""
        modelled = self.parts(kernels)
        factor, band, extrapolated = self.neighbours.predict(self._position(kernels, modelled))
        return _longest(modelled) * factor, band, extrapolated

    def _position(self, kernels: Sequence[Kernel], parts: Floats) -> Floats:
        array = np.maximum(parts[:, 0], _LEAST_US)
        ratios = np.log2(np.maximum(parts[:, 1:] / array[:, None], 0.2))
        bits = [self._encoded.bits(kernel.coding) if kernel.coding else 8.0 for kernel in kernels]
        regime = [_WORTH_WEIGHTS * ratios[:, 1], _WORTH_MEMORY * ratios[:, 0], _WORTH_BITS * np.log2(bits)]
        regime.append(np.array([_WORTH_PADDED * bool(pad_of(kernel)) for kernel in kernels]))
        return np.concatenate([position(sizes(kernels)), np.stack(regime, axis=1)], axis=1)

    def _terms(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Floats]:
        """Of array, feature-map memory and weight memory, each (n, terms)."""
        size = sizes(kernels)
        inputs, outputs, window, reads, writes, area = (
            size[name] for name in ("in", "out", "window", "reads", "writes", "out_area")
        )
        blocks = up(np.array([float(k.out_height) for k in kernels]), 2)
        blocks *= up(np.array([float(k.out_width) for k in kernels]), 2)
        encoded, one = self._encoded.bytes(kernels), np.ones(len(kernels))
        results = blocks * up(outputs, 8)
        if self.op in ("conv", "linear"):
            deep, part = window * up(inputs, 32), up(window, 4) * up(inputs, 8)
            fewest = results * np.minimum(deep, part)
            by_window = results * np.where(window > 1, part, deep)
            work = [fewest, by_window, area * window * up(inputs, 16) * up(outputs, 16), window * inputs * outputs]
            for macs, rate in product((fewest, by_window), _MACS_A_RESULT):
                work.append(np.maximum(macs, rate * results))
            if any(kernel.coding is not None and kernel.coding.pattern == "2:4" for kernel in self.kernels):
                # An Ethos-U85 leaves out the zeros: half of the work.
                half = np.array([0.5 if k.coding is not None and k.coding.pattern == "2:4" else 1.0 for k in kernels])
                work = [half * term for term in work]
            array = [one, *work, results, encoded, outputs, reads]
        else:
            # Padding that is not TFLite's writes a border of zeros ahead of a pooling.
            padded = np.array([float(bool(pad_of(kernel))) for kernel in kernels])
            array = [one, results * up(window, 4), blocks * up(outputs, 16) * up(window, 4), writes, reads,
                     area * up(outputs, 16), encoded, outputs, window * outputs,
                     padded, padded * reads, padded * writes, padded * size["area"] * up(outputs, 16)]  # fmt: skip
        side = [np.array([float(getattr(k, name)) for k in kernels]) for name in ("height", "width")]
        memory = [one, reads, writes, area * up(outputs, 16), up(inputs, 16) * side[0] * side[1], encoded,
                  reads * window / np.square(size["stride"]), writes * inputs]  # fmt: skip
        return np.stack(array, axis=1), np.stack(memory, axis=1), np.stack([one, encoded, outputs], axis=1)


def _longest(parts: Floats) -> Floats:
    longest: Floats = np.maximum(parts.max(axis=1), _LEAST_US)
    return longest


def _parts_of(table: LatencyTable, kernel: Kernel) -> tuple[float, float, float]:
    parts = table[kernel].parts
    assert parts is not None
    return parts.array_us, parts.sram_us, parts.weights_us
