"""The latencies that are known of a device: its shipped table, or what was measured on this machine so far."""

from collections.abc import Sequence

from autocomp.errors import UserError
from autocomp.hardware.local import local_device
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.profiling.on_demand import Progress, ensure_table
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

#: Time for measuring kernels of this machine that its table lacks, when an estimate needs them.
LOCAL_SECONDS = 60.0


def check_latencies(profile: HardwareProfile) -> None:
    """UserError where no latency of the device can be had here, which is worth knowing before a network is built.

    Its table has a fault, or it is measured on the spot and is not at hand.
    """
    if profile.on_the_spot:
        local_device(profile)
    else:
        _ = profile.latencies


def known_latencies(profile: HardwareProfile) -> LatencyTable:
    """The shipped table, or this machine's own as far as it was measured. Measures nothing.

    Empty where nothing was measured yet, or the device is not at hand. UserError where the table has a fault.
    """
    if not profile.on_the_spot:
        return profile.latencies
    try:
        path = local_device(profile).table
    except UserError:
        return LatencyTable({})
    return LatencyTable.read(path) if path.exists() else LatencyTable({})


def latencies_for(
    profile: HardwareProfile, kernels: Sequence[Kernel], progress: Progress | None = None
) -> LatencyTable:
    """The device's table. On this machine, those of `kernels` that it lacks are measured before.

    That takes `LOCAL_SECONDS` at most; what could not be measured in that time is left to the estimator. UserError
    where the device is not at hand.
    """
    if not profile.on_the_spot:
        return profile.latencies
    device = local_device(profile)
    return ensure_table(device.table, kernels, device.measure, LOCAL_SECONDS, progress)
