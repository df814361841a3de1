"""Pricing: cycles of a basic block by LLVM's machine code analyzer, and of a histogram of blocks.

A block is priced in steady state, as if it followed itself: right for the inner loops that make up a kernel, and blind
to caches, branch mispredictions and what the blocks around it overlap with. The calibration of the core takes up the
mean of that.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

from autocomp.errors import RunError
from autocomp.hardware.arm_simulation.blocks import Block, hottest, instructions
from autocomp.hardware.arm_simulation.sandbox import tool

#: Share of the executed instructions that is priced; the rest is taken to cost the same per instruction.
COVERED = 0.985
#: Times that a block is repeated in the analysis, to drown its start and end.
ITERATIONS = 40
#: Blocks of one call of the analyzer.
BATCH = 200

_UNKNOWN = "nop"


class Pricer:
    """Prices blocks for one scheduling model of LLVM, each block once.

    mca_cpu: name of the scheduling model.
    """

    def __init__(self, mca_cpu: str) -> None:
        self._cpu = mca_cpu
        self._assembly: dict[int, str] = {}
        self._cycles: dict[Block, float] = {}

    def cycles(self, executions: Counter[Block]) -> float:
        """Cycles of a histogram of blocks."""
        priced = hottest(executions, COVERED)
        self._price(priced)
        covered = instructions(priced)
        if not covered:
            return 0.0
        total = sum(count * self._cycles[block] for block, count in priced.items())
        return total * instructions(executions) / covered

    def _price(self, blocks: Iterable[Block]) -> None:
        new = [block for block in blocks if block not in self._cycles]
        words = {word for block in new for word in block} - self._assembly.keys()
        self._assembly.update(disassemble(sorted(words)))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            listings = [[self._assembly[word] for word in block] for block in batch]
            self._cycles.update(zip(batch, analyze(listings, self._cpu), strict=True))


def disassemble(words: Sequence[int]) -> dict[int, str]:
    """Assembly text of instruction words; a word that LLVM does not know becomes a nop."""
    if not words:
        return {}
    source = "\n".join(" ".join(f"{byte:#04x}" for byte in word.to_bytes(4, "little")) for word in words)
    output, errors = _llvm(["llvm-mc-19", "--disassemble", "-triple=aarch64", "-mattr=+all"], source)
    unknown = {int(line) - 1 for line in re.findall(r"^<stdin>:(\d+):\d+: warning: invalid", errors, re.MULTILINE)}
    known = [word for index, word in enumerate(words) if index not in unknown]
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.strip().startswith(".")]
    if len(lines) != len(known):
        raise RunError(f"llvm-mc disassembled {len(known)} instruction words into {len(lines)} lines")
    return dict.fromkeys(words, _UNKNOWN) | dict(zip(known, lines, strict=True))


def analyze(listings: Sequence[Sequence[str]], mca_cpu: str) -> list[float]:
    """Cycles of one pass through each listing of instructions, in steady state."""
    source = "".join(
        f"# LLVM-MCA-BEGIN {index}\n" + "\n".join(listing) + f"\n# LLVM-MCA-END {index}\n"
        for index, listing in enumerate(listings)
    )
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={mca_cpu}", "-mattr=+all", f"-iterations={ITERATIONS}"]
    views = ["-all-views=0", "-summary-view", "-skip-unsupported-instructions=any"]
    output, _ = _llvm([*command, *views], source)
    return read_summary(output, [len(listing) for listing in listings])


def read_summary(output: str, lengths: Sequence[int]) -> list[float]:
    """Cycles of one pass through each region of an llvm-mca summary.

    lengths: instructions of each region. A region that the analyzer left out costs one cycle per instruction.
    """
    regions = re.findall(r"^\[\d+\] Code Region - (\d+)$.*?^Total Cycles: +(\d+)$", output, re.MULTILINE | re.DOTALL)
    total = {int(name): int(cycles) for name, cycles in regions}
    return [total[i] / ITERATIONS if i in total else float(length) for i, length in enumerate(lengths)]


def _llvm(command: Sequence[str], source: str) -> tuple[str, str]:
    """Standard output and error of an LLVM tool that reads `source`."""
    done = subprocess.run([tool(command[0]), *command[1:]], input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{command[0]} failed with exit code {done.returncode}: {done.stderr.strip()[:300]}")
    return done.stdout, done.stderr
