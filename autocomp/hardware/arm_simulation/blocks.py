"""Histograms of executed basic blocks: reading a dump of the plugin, and arithmetic on them."""

from collections import Counter
from pathlib import Path

#: A basic block: its instruction words, in order.
Block = tuple[int, ...]


def read_dump(path: Path) -> Counter[Block]:
    """Executions by block. Blocks of equal instructions at different addresses count together.

    A line holds the executions in decimal, then the instruction words in hexadecimal.
    """
    executions: Counter[Block] = Counter()
    with path.open() as lines:
        for line in lines:
            count, *words = line.split()
            executions[tuple(int(word, 16) for word in words)] += int(count)
    return executions


def instructions(executions: Counter[Block]) -> int:
    """Number of executed instructions."""
    return sum(count * len(block) for block, count in executions.items())


def difference(longer: Counter[Block], shorter: Counter[Block]) -> Counter[Block]:
    """What `longer` executed more than `shorter`; negative for a block that it executed less."""
    result = Counter(longer)
    result.subtract(shorter)
    return Counter({block: count for block, count in result.items() if count})


def hottest(executions: Counter[Block], share: float) -> Counter[Block]:
    """The fewest blocks that make up `share` of all executed instructions."""
    weight = {block: abs(count) * len(block) for block, count in executions.items()}
    enough = share * sum(weight.values())
    kept: Counter[Block] = Counter()
    covered = 0
    for block in sorted(weight, key=lambda block: (-weight[block], block)):
        if covered >= enough:
            break
        covered += weight[block]
        kept[block] = executions[block]
    return kept
