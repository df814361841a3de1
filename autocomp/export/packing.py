"""Weights of any bit-width as bytes, and back.

A code of b bits is split into planes of 4, 2 and 1 bits (6 = 4 + 2, 3 = 2 + 1, …); each plane is a uint8 array with
8 / width fields a byte, the first code in the lowest bits. That needs no sub-byte tensor type, so the files load in
every ONNX Runtime since opset 18. A sparse weight is a bit mask and the codes of the weights that are kept; a
clustered one is a codebook of int8 levels and each weight's place in it.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

#: bits → widths of the planes, from the low end of the code.
PLANES: dict[int, tuple[int, ...]] = {
    1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1),
}  # fmt: skip


def padded(count: int) -> int:
    """Codes are padded to a multiple of 8, so that every plane ends on a whole byte and all unpack to one length."""
    return -(-count // 8) * 8


def pack_plane(fields: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """fields: (n,) values below 2**width, n a multiple of 8. Returns (n * width / 8,) bytes."""
    per_byte = 8 // width
    table = fields.reshape(-1, per_byte).astype(np.uint16) << (np.arange(per_byte, dtype=np.uint16) * width)
    return table.sum(axis=1).astype(np.uint8)


def unpack_plane(packed: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The inverse of `pack_plane`."""
    shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
    return ((packed[:, None] >> shifts) & np.uint8(2**width - 1)).reshape(-1)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> list[NDArray[np.uint8]]:
    """codes: (n,) values below 2**bits. Returns one byte array per plane of PLANES[bits]."""
    full = np.zeros(padded(len(codes)), dtype=np.uint8)
    full[: len(codes)] = codes
    planes, shift = [], 0
    for width in PLANES[bits]:
        planes.append(pack_plane(((full >> shift) & (2**width - 1)).astype(np.uint8), width))
        shift += width
    return planes


def unpack_codes(planes: list[NDArray[np.uint8]], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`, by the same steps as the ONNX operators in the file."""
    total, shift = np.zeros(padded(count), dtype=np.uint8), 0
    for plane, width in zip(planes, PLANES[bits], strict=True):
        total += unpack_plane(plane, width) << np.uint8(shift)
        shift += width
    return total[:count]


@dataclass(frozen=True, slots=True)
class Packing:
    """How one weight is stored.

    bits: per value (32 for float32). sparse: a mask says which values are there. clustered: values are places in a
    codebook of up to 2**bits levels.
    """

    bits: int
    sparse: bool
    clustered: bool = False

    def payload_bytes(self, count: int, kept: int) -> int:
        """Bytes of the weight's tensors, `kept` of `count` values being non-zero."""
        values = kept if self.sparse else count
        mask = padded(count) // 8 if self.sparse else 0
        if self.bits >= 8:
            return mask + values * self.bits // 8
        codebook = 2**self.bits if self.clustered else 0
        return mask + codebook + padded(values) * self.bits // 8


def choose_packing(bits: int | None, count: int, kept: int, clustered: bool = False) -> Packing:
    """The smaller of the dense and the sparse form. A mask costs one bit a weight, so it pays from about 1 / bits.

    bits: of a code in the codebook where the weight is clustered.
    """
    width = 32 if bits is None else bits
    dense, sparse = Packing(width, False, clustered), Packing(width, True, clustered)
    # Neither the 2-bit grid nor a codebook has a level 0 for sure: a pruned weight cannot be written densely.
    must = lacks_zero(width, clustered) and kept < count
    return sparse if must or sparse.payload_bytes(count, kept) < dense.payload_bytes(count, kept) else dense


def lacks_zero(bits: int, clustered: bool) -> bool:
    """Whether 0 may be missing from the values that codes of so many bits stand for."""
    return clustered or bits == 2


def weight_payload(shape: tuple[int, ...], bits: int | None, kept: int) -> int:
    """Bytes of a layer's packed weight."""
    return choose_packing(bits, prod(shape), kept).payload_bytes(prod(shape), kept)
