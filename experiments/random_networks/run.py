"""Draws networks at random and holds all forms of each together: torch, traced graph, float file, quantized files.

    python experiments/random_networks/run.py [--first 0] [--count 2000] [--processes 2]

Prints each network whose forms differ or that is refused, and one JSON line last.
"""

import argparse
import concurrent.futures
import json
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from autocomp.errors import UserError


def prepare() -> None:
    """Once for each process."""
    import torch
    from exporter import make_registry_once

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    make_registry_once()


def hold(seed: int) -> tuple[int, str, list[str], tuple[str, ...]]:
    """(seed, "agree", "differ", "refused" or "fault", what was found, the blocks of the network)."""
    from held_together import differences
    from random_networks import draw

    drawn = draw(seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = differences(drawn.network, drawn.inputs, np.random.default_rng(seed), Path(folder))
        except UserError as error:
            return seed, "refused", [str(error)], drawn.blocks
        except Exception as error:  # noqa: BLE001  (what may go wrong is what is looked for)
            return seed, "fault", [f"{type(error).__name__}: {error}"[:300]], drawn.blocks
    return seed, "differ" if found else "agree", found, drawn.blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.time()
    kinds: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    seeds = range(options.first, options.first + options.count)
    # A process that has traced a few hundred networks holds a gigabyte: each is replaced in time.
    with concurrent.futures.ProcessPoolExecutor(
        options.processes, multiprocessing.get_context("spawn"), prepare, max_tasks_per_child=100
    ) as pool:
        for seed, kind, found, drawn in pool.map(hold, seeds):
            kinds[kind] += 1
            blocks.update(drawn)
            if kind != "agree":
                print(f"{seed} {kind}: {'; '.join(found)}  {drawn}", flush=True)
    result = {"networks": options.count, "first_seed": options.first}
    result |= {kind: kinds[kind] for kind in ("agree", "differ", "refused", "fault")}
    result |= {"blocks": sum(blocks.values()), "seconds": round(time.time() - started)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
