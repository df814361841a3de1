"""What `hw check` shows: each network timed and estimated, and the estimator beside the usual guesses."""

from rich.console import Console

from autocomp.check import Check
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
