"""Kernels of any device timed in the same rounds, the reference kernel among them."""

import logging
from collections.abc import Callable, Iterator, Sequence

from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.runner import TimedInRounds, Timing, time_in_rounds
from autocomp.kernel import Kernel

log = logging.getLogger(__name__)


def time_together(
    kernels: Sequence[Kernel], make_chains: Callable[[Kernel], TimedInRounds], deadline: float = float("inf")
) -> Iterator[tuple[Kernel, Timing, Timing]]:
    """(kernel, its timing, that of the reference kernel in the same rounds), as soon as its rounds agree.

    deadline: of `time.monotonic`; past it, they come as they are. Kernels that the runtime refuses to build are left
    out, with a warning.
    """
    chains: dict[Kernel, TimedInRounds] = {}
    for kernel in kernels:
        try:
            chains[kernel] = make_chains(kernel)
        except Exception as error:  # noqa: BLE001  the runtimes' own exceptions share no base class
            log.warning("no latency of %s: the runtime refuses it: %s", kernel, " ".join(str(error).split())[:200])
    yield from time_in_rounds(chains, make_chains(REFERENCE), deadline)
