"""The latencies that are known of a device: its shipped table, or what was measured on this machine so far."""

from collections.abc import Sequence

from autocomp.hardware.host import Progress, ensure_host_table, host_table
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

#: Time for measuring kernels of this machine that its table lacks, when an estimate needs them.
HOST_SECONDS = 60.0


def known_latencies(profile: HardwareProfile) -> LatencyTable:
    """The shipped table, or this machine's own as far as it was measured (perhaps empty). Measures nothing."""
    return host_table() if profile.on_the_spot else profile.latencies


def latencies_for(
    profile: HardwareProfile, kernels: Sequence[Kernel], progress: Progress | None = None
) -> LatencyTable:
    """The device's table. On this machine, those of `kernels` that it lacks are measured before.

    That takes `HOST_SECONDS` at most; what could not be measured in that time is left to the estimator.
    """
    return ensure_host_table(kernels, HOST_SECONDS, progress) if profile.on_the_spot else profile.latencies
