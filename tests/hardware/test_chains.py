"""Chains of copies: long enough to be told apart, and such that they can be built."""

import pytest

from autocomp.hardware.kernel_models import max_repeats
from autocomp.hardware.profiling.chains import IN_NETWORK_US, chain_copies, coldness, table_latency
from autocomp.hardware.runner import Timing
from autocomp.kernel import Kernel


@pytest.mark.parametrize("kernel", [
    *(Kernel("conv", "int8", 8, 8 * i, 8, 8) for i in (1, 2, 3)), Kernel("conv", "fp32", 512, 512, 28, 28, 3, 3),
    Kernel("max_pool", "fp32", 24, 24, 16, 16, 3, 3, 2), Kernel("conv", "fp32", 3, 64, 224, 224, 7, 7, 2),
])  # fmt: skip
def test_the_long_chain_is_longer_and_can_be_built(kernel: Kernel) -> None:
    short, long = chain_copies(kernel)
    limit = max_repeats(kernel)
    assert 1 <= short < long
    assert limit is None or long <= limit


def test_a_chain_of_large_weights_adds_up_to_more_than_a_second_level_cache() -> None:
    kernel = Kernel("conv", "fp32", 320, 1280, 7, 7)
    short, long = chain_copies(kernel)
    assert (long - short) * kernel.weight_count * 4 > 6e6


def test_a_kernel_lost_in_the_noise_still_takes_something() -> None:
    kernel = Kernel("add", "fp32", 8, 8, 4, 4)
    assert table_latency(kernel, Timing(-1.0, 0.5, 8, -2.0)).latency_us > IN_NETWORK_US
    assert table_latency(kernel, Timing(10.0, 0.5, 8, 8.0)).latency_us == pytest.approx(10 + IN_NETWORK_US)


def test_what_does_not_fit_the_cache_is_cold_inside_a_network() -> None:
    small, middle, large = (Kernel("depthwise", "fp32", c, c, 28, 28, 3, 3, 1, c) for c in (2, 64, 256))
    warm, cold = 10.0, 30.0
    assert coldness(small) == 0 and coldness(large) == 1
    assert coldness(middle) == pytest.approx(4 * (2 * 64 * 28 * 28 + 0.1 * 64 * 9) / 1e6 - 0.1)
    latencies = [table_latency(k, Timing(warm, 0.0, 8, cold)).latency_us for k in (small, middle, large)]
    shares = [0, coldness(middle), 1]
    assert latencies == pytest.approx([IN_NETWORK_US + warm + share * (cold - warm) for share in shares])
