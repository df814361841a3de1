"""Packing: whatever goes in comes out, in exactly the bytes that were promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.masks import kept_weights
from autocomp.compress.quantize import Grid
from autocomp.export.packing import (
    PLANES,
    Packing,
    choose_packing,
    pack_codes,
    pack_plane,
    padded,
    unpack_codes,
    unpack_plane,
    weight_payload,
)

BITS = tuple(PLANES)
COUNTS = st.integers(1, 200)


def random_codes(count: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_the_planes_make_up_the_bits(bits):
    assert sum(PLANES[bits]) == bits
    assert all(8 % width == 0 for width in PLANES[bits])


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=30, deadline=None)
@given(count=COUNTS, seed=st.integers(0, 1000))
def test_codes_come_back(bits, count, seed):
    codes = random_codes(count, bits, seed)
    planes = pack_codes(codes, bits)
    assert (unpack_codes(planes, bits, count) == codes).all()
    assert sum(plane.nbytes for plane in planes) == Packing(bits, False).payload_bytes(count, count)


def test_a_byte_worked_by_hand():
    # The first code stands in the lowest bits: 1 + 2·4 + 3·16 + 0·64 = 57.
    assert pack_plane(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [57]
    assert unpack_plane(np.array([57], np.uint8), 2).tolist() == [1, 2, 3, 0]
    # 6 bits: the low 4 bits of 0b101101 and 0b000011 in one byte, their high 2 bits in another.
    low, high = pack_codes(np.array([0b101101, 0b000011], np.uint8), 6)
    assert low.tolist() == [0b0011_1101, 0, 0, 0]
    assert high.tolist() == [0b00_10, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, None])
@settings(max_examples=30, deadline=None)
@given(count=COUNTS, sparsity=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_sparse_weights_come_back_in_the_bytes_that_were_promised(bits, count, sparsity, seed):
    rng = np.random.default_rng(seed)
    kept = kept_weights(count, sparsity)
    mask = np.zeros(count, dtype=bool)
    mask[rng.permutation(count)[:kept]] = True
    grid = None if bits is None else Grid(bits)
    if grid is None:
        values = rng.standard_normal(count).astype(np.float32)
    else:
        lowest = 0 if bits == 2 else 1
        values = (rng.integers(lowest, 2**bits, count) * grid.step + grid.offset).astype(np.int8)
    weight = np.where(mask, values, 0)

    bitmap = np.zeros(padded(count), np.uint8)
    bitmap[:count] = mask
    stored = [pack_plane(bitmap, 1)]
    if bits is None or bits == 8:
        stored.append(weight[mask])
        unpacked = weight[mask]
    else:
        planes = pack_codes(grid.codes(weight[mask]), bits)
        stored += planes
        unpacked = (unpack_codes(planes, bits, kept).astype(int) * grid.step + grid.offset).astype(np.int8)
    again = np.zeros(count, weight.dtype)
    again[unpack_plane(stored[0], 1)[:count].astype(bool)] = unpacked
    assert (again == weight).all()
    width = 32 if bits is None else bits
    assert sum(part.nbytes for part in stored) == Packing(width, True).payload_bytes(count, kept)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, None])
@given(count=COUNTS, sparsity=st.floats(0, 0.99))
def test_the_smaller_form_is_chosen(bits, count, sparsity):
    kept = kept_weights(count, sparsity)
    chosen = choose_packing(bits, count, kept)
    width = 32 if bits is None else bits
    sizes = {sparse: Packing(width, sparse).payload_bytes(count, kept) for sparse in (False, True)}
    assert chosen.bits == width
    assert weight_payload((count,), bits, kept) == sizes[chosen.sparse]
    if bits == 2 and kept < count:
        assert chosen.sparse  # the 2-bit grid has no zero
    else:
        assert sizes[chosen.sparse] == min(sizes.values())


def test_payloads_worked_by_hand():
    # 256 × 256 weights.
    n = 65_536
    assert weight_payload((256, 256), None, n) == 262_144
    assert [weight_payload((256, 256), b, n) for b in (8, 6, 4, 3, 2)] == [65_536, 49_152, 32_768, 24_576, 16_384]
    assert weight_payload((256, 256), 8, n // 10) == 8_192 + 6_553  # mask and one byte a weight that stays
    assert weight_payload((256, 256), 4, n // 2) == 8_192 + 16_384
    assert weight_payload((256, 256), 4, round(n * 0.9)) == 32_768  # dense: the mask would cost more than it saves


def test_a_codebook_is_codes_and_its_levels():
    n = 65_536
    dense = choose_packing(4, n, n, clustered=True)
    assert dense == Packing(4, False, True)
    assert dense.payload_bytes(n, n) == 32_768 + 16  # half a byte a weight, and 16 levels
    # No level need be 0: a pruned weight is written with a mask, however few zeros there are.
    assert choose_packing(4, n, n - 1, clustered=True).sparse and not choose_packing(4, n, n - 1).sparse
    assert Packing(1, True, True).payload_bytes(n, n // 2) == 8_192 + 4_096 + 2


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 7]), count=COUNTS.map(lambda n: 8 * n))  # codes are padded to eights
def test_more_bits_never_take_fewer_bytes(bits, count):
    assert weight_payload((count,), bits, count) <= weight_payload((count,), bits + 1, count)


@given(bits=st.sampled_from([3, 4, 5, 6, 7, 8, None]), count=COUNTS, less=st.floats(0, 0.99), more=st.floats(0, 0.99))
def test_more_zeros_never_take_more_bytes(bits, count, less, more):
    less, more = sorted((less, more))
    sizes = [weight_payload((count,), bits, kept_weights(count, s)) for s in (less, more)]
    assert sizes[1] <= sizes[0]
