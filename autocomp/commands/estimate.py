"""`estimate`: what a network will cost on a device, predicted."""

from pathlib import Path

from autocomp.commands.exit_codes import DONE
from autocomp.commands.options import TaskOptions, is_network_file, one_device, read_policy, search_settings
from autocomp.commands.output import print_json, strays_on_stderr, terminal, warn


def estimate(
    file_or_policy: Path | None = None, /, *, options: TaskOptions, strict: bool = False, json: bool = False
) -> int:
    """Show the predicted latency of a network, kernel by kernel.

    Parameters
    ----------
    file_or_policy
        An ONNX file, or the .json file of a policy for the task's network; without one, the float network and its
        plain int8 version are estimated.
    strict
        Refuse a network with a kernel that lies outside what the device's table measured.
    json
        Print one JSON document on standard output.
    """
    hw = one_device(options.hw, "estimate")
    is_file = file_or_policy is not None and is_network_file(file_or_policy)
    settings = None if is_file else search_settings(options, hw)
    policy = None if is_file or file_or_policy is None else read_policy(file_or_policy)
    from autocomp.hardware.latencies import at_hand
    from autocomp.hardware.profile import find_profile

    profile = at_hand(find_profile(hw))
    from autocomp import estimate as estimates
    from autocomp.report.estimate import document, print_estimate
    from autocomp.report.progress import make_display

    with strays_on_stderr(), make_display() as display:
        if settings is not None:
            found = estimates.estimate_task(settings, policy, str(file_or_policy), display)
        else:
            assert file_or_policy is not None
            if profile.staleness is not None:
                warn(profile.staleness)
            found = estimates.estimate_file(file_or_policy, profile, display)
        if strict:
            estimates.refuse_extrapolated(found)
    if json:
        print_json(document(found))
    else:
        print_estimate(found, terminal())
    return DONE
