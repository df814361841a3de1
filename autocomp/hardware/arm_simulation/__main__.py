"""python -m autocomp.hardware.arm_simulation OUT.csv: fill a latency table by simulation, or continue one."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts

from autocomp.errors import RunError, UserError
from autocomp.hardware.arm_simulation.catalogue import catalogue
from autocomp.hardware.arm_simulation.cores import CORES, core
from autocomp.hardware.arm_simulation.sandbox import prepare
from autocomp.hardware.arm_simulation.simulate import Simulator
from autocomp.hardware.arm_simulation.table import build_table

app = cyclopts.App(name="python -m autocomp.hardware.arm_simulation", help=__doc__)


@app.default
def main(
    out: Path,
    *,
    core_name: Annotated[str, cyclopts.Parameter(name="--core", help=f"One of {', '.join(CORES)}.")] = "cortex-a76",
    limit: int | None = None,
) -> int:
    """Fill or continue the table OUT.

    out: CSV file; rows that it has already are kept and not simulated again.
    limit: simulate only the first so many kernels of the catalogue.
    """
    try:
        simulator = Simulator(prepare(core(core_name)))
        build_table(out, catalogue()[:limit], simulator.simulate)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    for kernel, reason in simulator.failures.items():
        print(f"not simulated: {kernel}: {reason}", file=sys.stderr)
    return 1 if simulator.failures else 0


if __name__ == "__main__":
    sys.exit(app(result_action="return_value"))
