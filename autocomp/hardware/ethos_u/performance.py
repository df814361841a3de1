"""What Vela writes about a compiled model: its summary, its estimate of each operator, what it leaves to the CPU."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: "Warning (supported operators) operator: CONV_2D, ofm: 'name'", the reason, an empty line.
_REFUSAL = re.compile(r"^Warning \([^)]*\) operator: [^,]+, ofm: '(?P<ofm>.*)'\n(?P<reason>(?:.+\n)+)", re.MULTILINE)
#: Vela splits an activation function off its operator and gives the inner tensor this ending.
_INNER = "_act"


@dataclass(frozen=True, slots=True)
class OperatorEstimate:
    """Vela's estimate of one operator.

    name: of the tensor that it writes. operator: as in the file, such as "Conv2D". on_npu: whether the NPU executes
    it. cycles: of the NPU's clock; the largest of what the array (npu_cycles) and each memory are busy. staging_bytes:
    of the SRAM in use.
    """

    name: str
    operator: str
    on_npu: bool
    cycles: int
    npu_cycles: int
    sram_cycles: int
    dram_cycles: int
    flash_cycles: int
    macs: int
    staging_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Vela's estimate of a whole model. core_clock: in Hz. sram_bytes: peak. encoded_weight_bytes: with biases."""

    cycles: int
    latency_ms: float
    core_clock: float
    sram_bytes: int
    encoded_weight_bytes: int


def parse_summary(text: str) -> Summary:
    """The summary in the text of `*_summary_*.csv`. KeyError or ValueError where it is of another form."""
    row = next(csv.DictReader(io.StringIO(text)))
    return Summary(
        int(float(row["cycles_total"])),
        float(row["inference_time"]) * 1e3,
        float(row["core_clock"]),
        round(float(row["sram_memory_used"]) * 1024),
        int(float(row["total_npu_encoded_weights"])),
    )


def parse_operators(text: str) -> tuple[OperatorEstimate, ...]:
    """The operators in the text of `*_per-layer.csv`, in order of execution."""
    return tuple(_operator(row) for row in csv.DictReader(io.StringIO(text)))


def _operator(row: Mapping[str, str]) -> OperatorEstimate:
    def count(column: str) -> int:
        return int(float(row[column]))

    return OperatorEstimate(
        row["Name"], row["Original Operator"], row["Target"] == "NPU", count("Op Cycles"), count("NPU"),
        count("SRAM AC"), count("DRAM AC"), count("OnFlash AC") + count("OffFlash AC"), count("MAC Count"),
        count("Staging Usage"),
    )  # fmt: skip


def parse_fallbacks(operators: tuple[OperatorEstimate, ...], log: str) -> tuple[tuple[str, str], ...]:
    """(operator, Vela's reason in one line) of what the CPU has to execute. log: what Vela printed."""
    reasons = dict(_refusals(log))
    return tuple(
        (f"{operator.operator} {operator.name}", reasons.get(operator.name, "Vela gives no reason"))
        for operator in operators
        if not operator.on_npu
    )


def _refusals(log: str) -> Iterator[tuple[str, str]]:
    for found in _REFUSAL.finditer(log):
        reason = " ".join(found["reason"].removeprefix("Reason:").split())
        yield found["ofm"], reason
        yield found["ofm"].removesuffix(_INNER), reason
