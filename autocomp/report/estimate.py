"""Estimates in the terminal: where the time of one network goes, and one network on several devices."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from autocomp.estimate import DeviceEstimate, NetworkEstimate
from autocomp.hardware.breakdown import Breakdown, KernelLatency
from autocomp.report.figures import significant, size, times
from autocomp.report.text import heading, line, plain_table

#: Rows of a comparison that a person reads; the JSON document has all.
_MOST_ROWS = 20
#: A terminal with fewer columns gets the upper end of a band alone, and the ends of long names.
_WIDE, _MOST_NAME = 100, 14


def document(estimate: DeviceEstimate) -> dict[str, Any]:
    """One device's estimates as plain values; milliseconds, bytes, fractions."""
    profile = estimate.profile
    return {
        "hw": profile.name,
        "provenance": str(profile.provenance),
        "staleness": profile.staleness,
        "gain": estimate.gain,
        "networks": [_network(network) for network in estimate.networks],
    }


def comparison(estimates: Sequence[DeviceEstimate]) -> dict[str, Any]:
    """Several devices' estimates of one network, and its layers side by side."""
    return {
        "devices": [document(estimate) for estimate in estimates],
        "layers": [
            {"layer": name, "latency_ms": dict(zip((e.profile.name for e in estimates), row, strict=True))}
            for name, row in _side_by_side(estimates)
        ],
    }


def print_estimate(estimate: DeviceEstimate, console: Console) -> None:
    """A network kernel by kernel; of two versions, only what they take in all."""
    if len(estimate.networks) == 1:
        _print_kernels(estimate.networks[0].breakdown, console)
        console.print()
    table = plain_table("network", ">size", ">memory", ">MACs", ">ms", ">90 % band", "limited by")
    for network in estimate.networks:
        whole = network.breakdown
        limits = ", ".join(f"{limit} {_percent(s)}" for limit, s in whole.limit_shares.items() if s >= 0.005)
        table.add_row(
            Text(network.name), size(network.size_bytes), size(network.memory_bytes), _count(network.macs),
            significant(whole.latency_ms), _band(whole), limits,
        )  # fmt: skip
    console.print(table)
    _print_source(estimate, console)


def print_comparison(estimates: Sequence[DeviceEstimate], console: Console) -> None:
    """What the network takes on each device, then the layers whose share of the time differs most between them."""
    table = plain_table("device", "network", ">ms", ">90 % band", ">faster", "limited by")
    for estimate in estimates:
        for network in estimate.networks:
            whole = network.breakdown
            gain = times(estimate.gain) if network is estimate.networks[-1] and estimate.gain else ""
            limit, share = next(iter(whole.limit_shares.items()))
            device = estimate.profile.name if network is estimate.networks[0] else ""
            most = f"{limit} {_percent(share)}"
            table.add_row(device, Text(network.name), significant(whole.latency_ms), _band(whole), gain, most)
    console.print(table)
    rows = _side_by_side(estimates)
    heading(console, f"Layers of {estimates[0].networks[-1].name}, µs: those first whose share differs most")
    table = plain_table("layer", *(f">{estimate.profile.name}" for estimate in estimates))
    for name, row in rows[:_MOST_ROWS]:
        table.add_row(Text(name), *("–" if value is None else significant(1000 * value) for value in row))
    console.print(table)
    if len(rows) > _MOST_ROWS:
        line(console, f"… and {len(rows) - _MOST_ROWS} more; --json has all.")
    for estimate in estimates:
        _print_source(estimate, console)


def _side_by_side(estimates: Sequence[DeviceEstimate]) -> list[tuple[str, tuple[float | None, ...]]]:
    """(layer, milliseconds on each device) of the last version; first where the shares of the whole differ most.

    Devices need not execute the same kernels: one may convert where another does not. A layer's conversions count as
    layers of their own, and what a device does not execute is None.
    """
    columns = [_by_layer(estimate.networks[-1].breakdown) for estimate in estimates]
    names = list(dict.fromkeys(name for column in columns for name in column))

    def spread(name: str) -> float:
        shares = [column[name].share if name in column else 0.0 for column in columns]
        return max(shares) - min(shares)

    names.sort(key=lambda name: -spread(name))
    return [(name, tuple(c[name].latency_ms if name in c else None for c in columns)) for name in names]


def _by_layer(breakdown: Breakdown) -> dict[str, KernelLatency]:
    """The kernels under a name each: the layer's and what it is, with a number where that occurs again."""
    found: dict[str, KernelLatency] = {}
    for kernel in breakdown.kernels:
        what = str(kernel.kernel).removesuffix(kernel.kernel.precision).rstrip()
        plain = f"{kernel.name}: {what}" if kernel.name else what
        name, number = plain, 1
        while name in found:
            number += 1
            name = f"{plain} ({number})"
        found[name] = kernel
    return found


#: Of the table of kernels, without what an NPU adds.
_COLUMNS = 6


def _print_kernels(breakdown: Breakdown, console: Console) -> None:
    narrow = console.width < _WIDE
    table = plain_table("layer", "kernel", ">µs", ">90 %" if narrow else ">90 % band", ">share", "limited by")
    if any(kernel.lever for kernel in breakdown.kernels) and not narrow:
        table.add_column("faster by")
    for kernel in breakdown.kernels:
        name = kernel.name if not narrow or len(kernel.name) <= _MOST_NAME else f"…{kernel.name[1 - _MOST_NAME :]}"
        low, high = significant(1000 * kernel.low_ms), significant(1000 * kernel.high_ms)
        band = f"+{_percent(kernel.high_ms / kernel.latency_ms - 1)}" if narrow else f"{low}–{high}"
        beyond = "*" if kernel.extrapolated else ""
        table.add_row(
            Text(name), Text(str(kernel.kernel), no_wrap=True), significant(1000 * kernel.latency_ms) + beyond, band,
            f"{100 * kernel.share:.1f} %", kernel.limit, *([kernel.lever] if len(table.columns) > _COLUMNS else []),
        )  # fmt: skip
    console.print(table)


def _print_source(estimate: DeviceEstimate, console: Console) -> None:
    console.print()
    profile = estimate.profile
    line(console, f"{profile.name}: {profile.title}. Latency: {profile.provenance_note}.")
    for network in estimate.networks:
        whole = network.breakdown
        beyond, between = whole.extrapolated_share, 1 - whole.measured_share - whole.extrapolated_share
        told = [f"{_percent(whole.measured_share)} of its latency are rows of the table"]
        if between >= 0.005:
            told.append(f"{_percent(between)} estimated between them")
        if beyond >= 0.005:
            told.append(f"{_percent(beyond)} extrapolated beyond them (*)")
        lacking = dict.fromkeys(kernel.kernel.op for kernel in whole.kernels if not kernel.listed)
        if lacking:
            told.append(f"of it what the table has no rows of, by the nearest that it has: {', '.join(lacking)}")
        line(console, f"{network.name}: {', '.join(told)}.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _network(network: NetworkEstimate) -> dict[str, Any]:
    whole = network.breakdown
    return {
        "name": network.name,
        "size_bytes": network.size_bytes,
        "memory_bytes": network.memory_bytes,
        "macs": network.macs,
        "latency_ms": whole.latency_ms,
        "latency_low_ms": whole.low_ms,
        "latency_high_ms": whole.high_ms,
        "measured_share": whole.measured_share,
        "extrapolated_share": whole.extrapolated_share,
        "limit_shares": whole.limit_shares,
        "kernels": [
            {
                "layer": kernel.name, "kernel": str(kernel.kernel), "latency_ms": kernel.latency_ms,
                "low_ms": kernel.low_ms, "high_ms": kernel.high_ms, "share": kernel.share, "measured": kernel.measured,
                "extrapolated": kernel.extrapolated, "operator_in_table": kernel.listed,
                "limit": kernel.limit, "lever": kernel.lever,
            }
            for kernel in whole.kernels
        ],
    }  # fmt: skip


def _band(breakdown: Breakdown) -> str:
    return f"{significant(breakdown.low_ms)}–{significant(breakdown.high_ms)}"


def _count(number: int) -> str:
    """5,977,472 → "5.98 M"."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number / factor >= 0.9995:
            return f"{significant(number / factor)} {unit}"
    return str(number)
