"""What breaks the budget steps down until it fits, as the last step of HAQ's action walk (Wang et al. 2019, §3.3)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autocomp.budget import Budget
from autocomp.controllers.costs import CostFunction, Costs, Floats, violation
from autocomp.controllers.moves import Moves
from autocomp.policy import FLOAT, INT8
from autocomp.space import Genes, SearchSpace

#: Rounds of the walk and of the coordinate search. Each round strictly improves, so these bounds are seldom met.
MAX_ROUNDS = 24
#: Spread of the random factor on each gain: ties, and near-ties, fall differently for each candidate.
TIE_BREAK = 0.2


def repair(
    genes: Genes,
    space: SearchSpace,
    cost: CostFunction,
    budget: Budget,
    rng: np.random.Generator,
    *,
    moves: Moves | None = None,
    haven: Genes | None = None,
) -> Genes:
    """`genes` (G,) stepped down until `budget.admits` it; unchanged if it fits already.

    HAQ lowers one layer after another in a fixed order and costs the network after each step. Here one batch costs
    every gene's next step, the steps are ordered by the violation that they remove, and a second batch costs the
    first, the first two, … of them, so that a round takes two calls of `cost` whatever the number of genes. Every
    gene moves at most once a round, which spreads the compression as HAQ's walk does.

    Latency need not fall when a gene steps down. If the walk stalls, genes are copied one after another from
    `haven`, the candidate that violates the budget least (found by `nearest_fit` unless it is given). If the haven
    does not fit either, nothing that is known does, and the haven is returned: it is the nearest.

    moves, haven: what a caller that repairs often has computed before; they change the time, not the result.
    """
    moves = moves if moves is not None else Moves(space)
    current, over = genes, float(violation(cost(genes[None]), budget)[0])
    for round_number in range(MAX_ROUNDS):
        if over <= 0:
            return current
        stepped, gains = _best_steps(current, over, moves, cost, budget)
        helpful = gains > 0
        if not helpful.any():
            break
        if round_number == 0:
            # Far from the budget, whole rounds would be applied: find out how many in one call and leap there.
            leap, over_leap = _leap(current, stepped, helpful, moves, cost, budget)
            if leap is not None:
                current, over = leap, over_leap
                continue
        order = np.argsort(-gains * rng.uniform(1 - TIE_BREAK, 1 + TIE_BREAK, len(gains)), kind="stable")
        order = order[helpful[order]]
        path = _path(current, stepped, order)
        along = violation(cost(path), budget)
        fits = np.flatnonzero(along <= 0)
        if len(fits):
            first = int(fits[0])
            return _gentlest(path[first - 1] if first else current, stepped, order[first:], cost, budget)
        best = int(np.argmin(along))
        if along[best] >= over:
            break
        current, over = path[best], float(along[best])
    if over <= 0:
        return current
    target = haven if haven is not None else nearest_fit(space, cost, budget, moves)
    different = np.flatnonzero(current != target)
    if not len(different):
        return current
    path = _path(current, target, rng.permutation(different))
    along = violation(cost(path), budget)
    fits = np.flatnonzero(along <= 0)
    end: Genes = path[int(fits[0]) if len(fits) else -1]
    return end


def nearest_fit(space: SearchSpace, cost: CostFunction, budget: Budget, moves: Moves | None = None) -> Genes:
    """The candidate of least violation that a coordinate search finds from a few uniform starts, (G,).

    Among candidates that fit, the most compressed start wins: it leaves the most room. Latency couples neighbouring
    layers (a conversion where the activation changes), which one gene at a time cannot see; hence the starts that
    are int8 or float throughout.
    """
    starts = _starts(space)
    over = violation(cost(np.stack(starts)), budget)
    for start, value in zip(starts, over, strict=True):
        if value <= 0:
            return start
    ends = [_descend(start, space, lambda batch: violation(cost(batch), budget)) for start in starts]
    return ends[int(np.argmin(violation(cost(np.stack(ends)), budget)))]


def smallest_reachable(space: SearchSpace, cost: CostFunction) -> tuple[Genes, Genes, Genes]:
    """The candidates of least size, of least latency and of least memory, (G,) each: for when nothing fits.

    Found by coordinate search from uniform starts, so they are bounds that can be reached, not proofs of a minimum.
    """
    starts = _starts(space)

    def least(column: int) -> Genes:
        def objective(batch: Genes) -> Floats:
            return np.asarray(cost(batch)[column], dtype=float)

        ends = [_descend(start, space, objective) for start in starts]
        return ends[int(np.argmin(objective(np.stack(ends))))]

    size, latency, memory = (least(column) for column in range(len(Costs._fields)))
    return size, latency, memory


def _starts(space: SearchSpace) -> list[Genes]:
    keep = 1e-9  # the choice nearest to nothing kept is the smallest
    starts = [space.smallest, space.uniform(INT8, keep, 1.0), space.uniform(FLOAT, keep, 0.0)]
    return [np.array(row, dtype=np.int64) for row in dict.fromkeys(tuple(start.tolist()) for start in starts)]


def _descend(start: Genes, space: SearchSpace, objective: Callable[[Genes], Floats]) -> Genes:
    """Coordinate search: every choice of every gene in one batch, the best of each gene, then all of those at once."""
    current = start
    if not len(space):
        return current
    value = float(objective(current[None])[0])
    rows = np.repeat(np.arange(len(space)), space.cardinalities)
    choices = np.concatenate([np.arange(n) for n in space.cardinalities])
    for _ in range(MAX_ROUNDS):
        batch = np.repeat(current[None], len(rows), axis=0)
        batch[np.arange(len(rows)), rows] = choices
        values = objective(batch)
        joint = current.copy()
        for row in np.unique(rows[values < value]):
            options = np.flatnonzero(rows == row)
            joint[row] = choices[options[np.argmin(values[options])]]
        together = np.stack([joint, batch[int(np.argmin(values))]])
        both = objective(together)
        best = int(np.argmin(both))
        if both[best] >= value:
            break
        current, value = together[best], float(both[best])
    return current


def _best_steps(current: Genes, over: float, moves: Moves, cost: CostFunction, budget: Budget) -> tuple[Genes, Floats]:
    """Each gene's better move (one step down, or across), (G,), and the violation that it removes alone, (G,)."""
    options = np.stack([moves.down[moves.columns, current], moves.switch[moves.columns, current]])
    which, gene = np.nonzero(options != current)
    gains = np.full(options.shape, -np.inf)
    if len(gene):
        batch = np.repeat(current[None], len(gene), axis=0)
        batch[np.arange(len(gene)), gene] = options[which, gene]
        gains[which, gene] = over - violation(cost(batch), budget)
    choice = np.argmax(gains, axis=0)
    return options[choice, moves.columns], gains[choice, moves.columns]


def _leap(
    current: Genes, stepped: Genes, helpful: NDArray[np.bool_], moves: Moves, cost: CostFunction, budget: Budget
) -> tuple[Genes | None, float]:
    """The last candidate that breaks the budget when all helpful genes step down together, and its violation.

    None where a single round is already enough.
    """
    chain = [np.where(helpful, stepped, current)]
    for _ in range(int(moves.space.cardinalities.max())):
        chain.append(np.where(helpful, moves.down[moves.columns, chain[-1]], chain[-1]))
    over = violation(cost(np.stack(chain)), budget)
    fits = np.flatnonzero(over <= 0)
    last = int(fits[0]) - 1 if len(fits) else int(np.argmin(over))
    return (chain[last], float(over[last])) if last >= 0 else (None, 0.0)


def _gentlest(current: Genes, stepped: Genes, rows: NDArray[np.int64], cost: CostFunction, budget: Budget) -> Genes:
    """`current` with one of the genes `rows` stepped, so that it fits as closely as can be: at least rows[0] does.

    The steps were ordered by what they save; the last of them would often save far more than is still missing.
    """
    batch = np.repeat(current[None], len(rows), axis=0)
    batch[np.arange(len(rows)), rows] = stepped[rows]
    excess = np.array([budget.excess(*costs) for costs in zip(*cost(batch), strict=True)])
    end: Genes = batch[int(np.argmax(np.where(excess <= 0, excess, -np.inf)))]
    return end


def _path(current: Genes, target: Genes, order: Genes) -> Genes:
    """Candidates that take the genes `order` from `target` one after another, (len(order), G)."""
    path = np.repeat(current[None], len(order), axis=0)
    for step, row in enumerate(order):
        path[step:, row] = target[row]
    return path
