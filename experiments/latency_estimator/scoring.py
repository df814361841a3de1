"""How many candidates a second does one core score, and how many would a walk over the layers with a dictionary?

    python experiments/latency_estimator/scoring.py [--hw mobile_arm] [--rounds 9]

MobileNetV2 with its search space (precision and sparsity of 53 layers, channels of 25 groups). `scored`: everything
that a search wants to know of a candidate: latency with its band, bytes of the file, peak memory. `walk`: what one
would write first: decode the candidate, plan its execution, look each of its kernels up in a dictionary; latency
only. `lean walk`: precision and channels of each kernel are given as integers, so that only tuples are made and looked
up. `ten times the table`: scored with a table of ten times the rows. All are timed in turn, round by round, and the
medians reported; all must give the same latencies. The last line of standard output is one JSON document.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from autocomp.compress.trace import Traced, trace
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.choices import Layout, choosable_kernels, conversion_kernel, executed_over
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profile import find_profile
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel
from autocomp.space import Genes, SearchSpace
from autocomp.tasks.mobilenet import MobileNetV2
from autocomp.tasks.spaces import load_space

SPACE, CLASSES = "mobilenet_v2", 10
#: Candidates a round: each way takes a fraction of a second.
SCORED, WALKED, WALKED_LEAN = 200_000, 150, 2_000

Walk = Callable[[Genes], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hw", default="mobile_arm", help="profile whose table is looked up")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    traced, space, table = prepare(arguments.hw)
    sizes = FileSizes(OnnxWriter(traced))
    latency = LatencyModel.from_table(table)
    costs = CostModel(space, latency, sizes)
    larger = ten_times(table, latency)
    costs_larger = CostModel(space, LatencyModel.from_table(larger), sizes)
    kernels = choosable_kernels(space)
    known = dict(zip(kernels, (latency.predict(kernels).us / 1000).tolist(), strict=True))
    walk, lean = walker(space, known), lean_walker(costs.layout, known)
    genes = np.random.default_rng(0).integers(0, space.cardinalities, (SCORED, len(space)))

    expected = costs(genes[:WALKED]).latency_ms
    np.testing.assert_allclose(walk(genes[:WALKED]), expected, rtol=1e-9)
    columns = costs.layout.columns(genes[:WALKED_LEAN]).T.tolist()
    np.testing.assert_allclose(lean(columns[:WALKED]), expected, rtol=1e-9)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "scored": (SCORED, lambda: costs(genes)),
        "walk": (WALKED, lambda: walk(genes[:WALKED])),
        "lean walk": (WALKED_LEAN, lambda: lean(columns)),
        "ten times the table": (SCORED, lambda: costs_larger(genes)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds):
        for name, (count, run) in ways.items():
            began = time.perf_counter()
            run()
            rates[name].append(count / (time.perf_counter() - began))
        print(f"round {round_number + 1} of {arguments.rounds}", file=sys.stderr)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    print(json.dumps({
        "candidates_per_s": round(medians["scored"]),
        "ratio_to_walk": round(medians["scored"] / medians["walk"], 1),
        "ratio_to_lean_walk": round(medians["scored"] / medians["lean walk"], 1),
        "slowest_round": round(min(rates["scored"])), "fastest_round": round(max(rates["scored"])),
        "layers": len(space.network.layers), "genes": len(space), "table_rows": len(table),
        "candidates_per_s_with_larger_table": round(medians["ten times the table"]), "larger_table_rows": len(larger),
    }))  # fmt: skip


def prepare(hw: str) -> tuple[Traced, SearchSpace, LatencyTable]:
    """The traced network, its space on the device, and the device's table."""
    profile, file = find_profile(hw), load_space(SPACE)
    assert file.network is not None
    side = file.network.resolution
    network = MobileNetV2(file.network, 3, CLASSES).eval()
    traced = trace(network, torch.randn(2, 3, side, side), SPACE)
    options = replace(file.options, channel_multiple=profile.channel_multiple)
    return traced, SearchSpace.build(traced.spec, options, profile.veto), profile.latencies


def ten_times(table: LatencyTable, latency: LatencyModel) -> LatencyTable:
    """The table with nine more rows for each, of kernels that differ in height and cost what the model says."""
    more: dict[Kernel, Latency] = {}
    for taller in range(1, 10):
        kernels = [replace(kernel, height=kernel.height + 300 * taller) for kernel in table]
        more |= {k: Latency(float(us)) for k, us in zip(kernels, latency.predict(kernels).us, strict=True)}
    return LatencyTable(more).with_rows(table)


def walker(space: SearchSpace, known: dict[Kernel, float]) -> Walk:
    """Candidate by candidate: decode, plan, and add up what the dictionary holds for each kernel."""

    def walk(genes: Genes) -> list[float]:
        return [sum(known[kernel] for kernel, _ in network_kernels(space.network, space.decode(row))) for row in genes]

    return walk


def lean_walker(layout: Layout, known: dict[Kernel, float]) -> Callable[[list[list[int]]], list[float]]:
    """The same for candidates whose columns are worked out: a dictionary a kernel, by tuples of column values."""
    lookups: list[tuple[tuple[int, ...], dict[tuple[int, ...], float]]] = []
    for node, flag in zip(layout.network.kernels, layout.executed, strict=True):
        shapes = layout.kernel_shapes(node)
        if not node.free or node.work:
            places = list(product(*(range(dimension.size) for dimension in shapes.dimensions)))
            found = {
                (int(int8), *place): sum(known[kernel] for kernel in kernels)
                for int8 in flag.values
                for place, kernels in zip(places, executed_over(node, "int8" if int8 else "fp32", shapes), strict=True)
            }
            lookups.append(((flag.column, *(dimension.column for dimension in shapes.dimensions)), found))
    for source, stored in layout.stored.items():
        converted, axis = layout.converted[source], layout.result_axis(source)
        found = {}
        for step, place in product(layout.conversions(source), range(len(axis.counts))):
            kernel = conversion_kernel(layout.network, source, step, int(axis.counts[place]))
            found[int(step == "dequantize"), 1, place] = known[kernel]
        for is_int8, place in product((0, 1), range(len(axis.counts))):
            found[is_int8, 0, place] = 0.0
        # An axis that never changes has no column: the one that is always 0 stands for its only position.
        place_column = len(layout.space) if axis.column is None else axis.column
        lookups.append(((stored.column, converted.column, place_column), found))

    def walk(columns: list[list[int]]) -> list[float]:
        return [sum(found[tuple([row[column] for column in key])] for key, found in lookups) for row in columns]

    return walk


if __name__ == "__main__":
    main()
