"""How figures are written wherever a person reads them: one place, so that table, page and progress agree."""

from collections.abc import Mapping
from typing import Any

from autocomp.rundir import RunData


def provenances(run: RunData) -> list[str]:
    """Where the latencies of a front come from, each source once, with the device's name where there are several."""
    found = []
    for point in run.front:
        if point.devices:
            found += [f"{name}: {on.provenance}" for name, on in point.devices.items() if on.provenance]
        elif point.provenance:
            found.append(point.provenance)
    return list(dict.fromkeys(found))


def failed_references(run: RunData) -> list[str]:
    """What the run has in the place of a reference that could not be measured, a line each."""
    return [f"{name}: failed: {reason}" for name, reason in run.failed.items()]


def metric_of(settings: Mapping[str, Any]) -> str:
    """What files of a run are judged by, as its run.yaml has it; "accuracy" where that says nothing."""
    judge = settings.get("judge") or {}
    metric, scale = judge.get("metric"), judge.get("scale")
    if not metric:
        return "accuracy"
    if judge.get("against") == "answers":
        return f"agreement with the float network ({metric})"
    return str(metric) if scale is None else f"1 / (1 + {metric} / {float(scale):.4g})"


def compared_with(run: RunData) -> str:
    """What differences and ratios are against, in sentences."""
    reference, baseline = run.float_reference, run.baseline
    if reference is None:
        reason = "the float file failed" if "float" in run.failed else "the float file was not measured"
        return f"{'Nothing is compared' if baseline is None else 'Ratios are against plain int8'}: {reason}."
    if baseline is reference:
        return "Differences and ratios are against the float network."
    if baseline is None:
        return "Differences of accuracy are against the float network; no ratios: it does not run on the device."
    return (
        "Differences of accuracy are against the float network, ratios against plain int8: the device has no floating "
        "point. Bytes are those of the compiled file, which the device stores."
    )


def percent(fraction: float | None) -> str:
    """0.98467 → "98.47 %"."""
    return "–" if fraction is None else f"{fraction * 100:.2f} %"


def points(difference: float | None) -> str:
    """A difference of two accuracies in percentage points, with its sign: −0.004 → "−0.40"."""
    if difference is None:
        return "–"
    text = f"{difference * 100:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


def size(count: float | None) -> str:
    """Bytes with three significant digits, by decimal prefixes as in budgets: 3,912,345 → "3.91 MB"."""
    if count is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999,950 rounds to 1.00 MB, not to 1000 kB.
        if count / factor >= 0.9995:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float | None) -> str:
    """Latency with three significant digits: 0.41234 → "0.412 ms"."""
    return "–" if value is None else f"{significant(value)} ms"


def times(ratio: float | None) -> str:
    """A ratio: 9.53 → "×9.5"."""
    if ratio is None:
        return "–"
    return f"×{ratio:.0f}" if ratio >= 99.5 else f"×{ratio:.2g}" if ratio < 1 else f"×{ratio:.1f}"


def significant(value: float | None) -> str:
    """Three significant digits, without an exponent for anything that a size or a latency takes."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    magnitude = abs(value)
    decimals = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    if magnitude < 0.0995:
        return f"{value:.3g}"
    return f"{value:.{decimals}f}"


def duration(seconds: float) -> str:
    """0:42, 12:05 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
