"""`hw list`, `hw show`, `hw check`, `hw compare`: the devices that autocomp knows."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autocomp.commands.exit_codes import DONE
from autocomp.commands.options import NetworkOptions, is_network_file, read_policy, search_settings
from autocomp.commands.output import print_json, strays_on_stderr, terminal, warn
from autocomp.errors import UserError


def list_profiles(*, json: bool = False) -> int:
    """List the profiles that ship.

    Parameters
    ----------
    json
        Print one JSON document on standard output.
    """
    from autocomp.hardware.latencies import known_latencies
    from autocomp.hardware.profile import find_profile, profile_names
    from autocomp.report.device import print_list, summary

    devices = [(profile, known_latencies(profile)) for profile in map(find_profile, profile_names())]
    if json:
        print_json([summary(profile, table) for profile, table in devices])
    else:
        print_list(devices, terminal())
    return DONE


def show(name: str, *, kernel: str | None = None, plot: Path | None = None, json: bool = False) -> int:
    """Show one profile.

    Parameters
    ----------
    name
        Profile name, or the path of a profile file.
    kernel
        Kernel whose latency is drawn over its channels, as it is printed, with * for the channels that vary; by
        default the convolution of which the table has most.
    plot
        Also draw it into this .html file.
    json
        Print one JSON document on standard output.
    """
    if plot is not None and plot.suffix != ".html":
        raise UserError(f"--plot: expected the name of an .html file, got {plot}")
    from autocomp.hardware.channel_sweep import ChannelSweep, curve
    from autocomp.hardware.estimator import LatencyModel
    from autocomp.hardware.latencies import at_hand, known_latencies
    from autocomp.hardware.profile import find_profile
    from autocomp.report.device import document, print_curve, print_device

    profile = find_profile(name)
    sweep = None if kernel is None else ChannelSweep.parse(kernel)
    table = known_latencies(profile)
    shown = None
    if table:
        profile = at_hand(profile)
        model = LatencyModel.from_table(table, profile.calibration)
        shown = curve(sweep or ChannelSweep.fullest(table), table, model)
    elif sweep is not None or plot is not None:
        at_hand(profile)
        raise UserError(f"{name} has no latencies yet to draw: measure them first with autocomp profile {name}")
    if shown is not None and plot is not None:
        from autocomp.report.latency_plot import write_plot

        write_plot(profile, shown, plot)
    if json:
        print_json(document(profile, table, shown))
        return DONE
    console = terminal()
    print_device(profile, table, console)
    if shown is not None:
        print_curve(shown, console)
    return DONE


def check(
    name: str,
    *,
    networks: Annotated[int, Parameter(allow_leading_hyphen=True)] = 50,
    seed: Annotated[int, Parameter(allow_leading_hyphen=True)] = 0,
    json: bool = False,
) -> int:
    """Time whole networks on this machine and hold its latency table against them.

    The networks are of five families, partly int8, pruned to odd channel counts; none of them made the table.

    Parameters
    ----------
    name
        host_cpu, host_gpu or gpu_h100, since only on the device itself can networks be timed; or an NPU, whose
        networks are compiled.
    networks
        How many networks.
    seed
        Other networks for another seed.
    json
        Print one JSON document on standard output.
    """
    for option, value, least in (("--networks", networks, 2), ("--seed", seed, 0)):
        if value < least:
            raise UserError(f"{option}: expected a whole number of at least {least}, got {value}")
    from autocomp.check import check_host
    from autocomp.hardware.profile import find_profile
    from autocomp.report.check import print_check, print_npu_check
    from autocomp.report.progress import make_display

    profile = find_profile(name)
    if profile.integer_only:
        from autocomp.npu_check import check_npu

        with strays_on_stderr(), make_display() as display:
            compiled = check_npu(profile, networks, display, seed=seed)
        if json:
            print_json(compiled.document())
        else:
            print_npu_check(compiled, terminal())
        return DONE
    with strays_on_stderr(), make_display() as display:
        found = check_host(profile, networks, display, seed=seed)
    if json:
        print_json(found.document())
    else:
        print_check(found, terminal())
    return DONE


def compare(
    devices: list[str],
    /,
    *,
    options: NetworkOptions = NetworkOptions(),  # noqa: B008  (frozen)
    hw: str | None = None,
    svg: Path | None = None,
    json: bool = False,
) -> int:
    """Show one network on several devices, or what each would have chosen from a run.

    Parameters
    ----------
    devices
        Profile names or paths of profile files, two or more; then, if it is not the task's network in float and in
        int8 that is compared, an ONNX file or the .json file of a policy. Or a run directory by itself.
    hw
        The devices that a run's candidates are compared on, beside those of the run, with commas between them; by
        default all that ship with a table.
    svg
        Also draw accuracy over latency on each device into this file; for a run only.
    json
        Print one JSON document on standard output.
    """
    if Path(devices[0]).is_dir():
        if len(devices) > 1 or options != NetworkOptions():
            raise UserError("hw compare RUN: a run says itself which network it compressed; name devices with --hw a,b")
        return _compare_run(Path(devices[0]), hw, svg, as_json=json)
    if hw is not None or svg is not None:
        raise UserError(
            f"hw compare: --hw and --svg are for a run directory, and {devices[0]} is none; "
            "devices stand without an option: hw compare mobile_arm host_cpu"
        )
    *names, last = devices
    target = Path(last) if last.endswith((".onnx", ".json")) else None
    if target is None:
        names = devices
    if len(names) < 2:
        raise UserError(
            f"hw compare: expected two devices or more, or a run directory, got {' '.join(names) or 'none'}; "
            "autocomp hw list"
        )
    if len(set(names)) < len(names):
        raise UserError(f"hw compare: expected different devices, got {' '.join(names)}")
    is_file = target is not None and is_network_file(target)
    settings = None if is_file else search_settings(options, names[0])
    policy = None if is_file or target is None else read_policy(target)
    from autocomp.hardware.latencies import at_hand
    from autocomp.hardware.profile import find_profile

    profiles = [at_hand(find_profile(name)) for name in names]
    from autocomp import estimate as estimates
    from autocomp.report.estimate import comparison, print_comparison
    from autocomp.report.progress import make_display

    for profile in profiles:
        if profile.staleness is not None:
            warn(profile.staleness)
    with strays_on_stderr(), make_display() as display:
        if settings is not None:
            found = estimates.compare_task(settings, policy, str(target), profiles, display)
        else:
            assert target is not None
            found = estimates.compare_file(target, profiles, display)
    if json:
        print_json(comparison(found))
    else:
        print_comparison(found, terminal())
    return DONE


def _compare_run(run: Path, hw: str | None, svg: Path | None, *, as_json: bool) -> int:
    from autocomp.rundir import find_run
    from autocomp.settings import split_devices

    if svg is not None and svg.suffix != ".svg":
        raise UserError(f"--svg: expected the name of an .svg file, got {svg}")
    names = () if hw is None else split_devices(hw)
    find_run(run)
    from autocomp.compare_run import compare_run
    from autocomp.report.compare_run import comparison_svg, document, print_run_comparison
    from autocomp.report.progress import make_display

    with strays_on_stderr(), make_display() as display:
        found = compare_run(run, names, display)
    if svg is not None:
        svg.write_text(comparison_svg(found), encoding="utf-8")
    if as_json:
        print_json(document(found))
    else:
        print_run_comparison(found, terminal())
    return DONE
