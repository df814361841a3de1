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


def at_hand(profile: HardwareProfile) -> HardwareProfile:
    """`profile`, once it is certain that latencies can be had: worth knowing before a network is built.

    The provenance of one that is measured on the spot names this machine's device. UserError where its table has a
    fault, or where it is measured on the spot and is not at hand.
    """
    if profile.on_the_spot:
        provenance = profile.provenance.model_copy(update={"text": local_device(profile).machine.how})
        return profile.model_copy(update={"provenance": provenance})
    _ = profile.latencies
    return profile


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
    where the device is not at hand, or does not run one of `kernels`.
    """
    if not profile.on_the_spot:
        return profile.latencies
    device = local_device(profile)
    for kernel in kernels:
        refusal = device.refusal(kernel)
        if refusal is not None:
            raise UserError(f"{profile.name} does not run {kernel}: {refusal}")
    return ensure_table(device.table, kernels, device.measure, LOCAL_SECONDS, progress)
