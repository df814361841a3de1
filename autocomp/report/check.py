"""What `hw check` shows: each network timed and estimated, and the estimator beside the usual guesses."""

from rich.console import Console

from autocomp.check import Check
from autocomp.npu_check import NpuCheck
from autocomp.report.text import heading, line, plain_table

_ROWS = {
    "single_operators_fp32": "sum of single operators in float32",
    "macs_regression": "regression on multiply-accumulates",
    "bytes_regression": "regression on bytes",
}


def print_check(check: Check, console: Console) -> None:
    table = plain_table("network", ">int8", ">timed ms", ">estimate ms", ">error", "band")
    for network in sorted(check.networks, key=lambda network: -abs(network.error)):
        inside = network.low_us <= network.us <= network.high_us
        table.add_row(
            network.name, f"{network.int8_kernels} of {network.kernels}", f"{network.us / 1000:.3f}",
            f"{network.estimate_us / 1000:.3f}", f"{100 * network.error:+.1f} %", "inside" if inside else "outside",
        )  # fmt: skip
    console.print(table)
    found = check.document()
    heading(console, f"{found['networks']} networks, a table of {found['table_rows']:,} kernels")
    scores = plain_table("", ">mean error", ">within 10 %", ">Spearman")
    for name, values in (
        ("this table", found), *((_ROWS[name], values) for name, values in found["baselines"].items()),
        ("the same files timed twice", found["noise"]),
    ):  # fmt: skip
        scores.add_row(
            name, f"{values['mape']:.1f} %", f"{100 * values['within_10pct']:.0f} %", f"{values['spearman']:.3f}"
        )
    console.print(scores)
    line(console, f"{100 * found['band_coverage']:.0f} % of the networks lie inside their 90 % band.")


def print_npu_check(check: NpuCheck, console: Console) -> None:
    table = plain_table("network", ">compiled ms", ">estimate ms", ">error", ">compiled bytes", ">error", ">on CPU")
    for network in sorted(check.networks, key=lambda network: -abs(network.error)):
        table.add_row(
            network.name, f"{network.us / 1000:.3f}", f"{network.estimate_us / 1000:.3f}",
            f"{100 * network.error:+.1f} %", f"{network.compiled_bytes:,}", f"{100 * network.size_error:+.1f} %",
            str(network.cpu_operators),
        )  # fmt: skip
    console.print(table)
    found = check.document()
    heading(console, f"{found['networks']} networks by {found['runtime']}, a table of {found['table_rows']:,} kernels")
    line(console, f"Latency: mean error {found['mape']:.1f} %, largest {found['largest_error']:.1f} %.")
    line(console, f"Bytes: mean error {found['bytes_mape']:.1f} %, largest {found['bytes_largest_error']:.1f} %.")
