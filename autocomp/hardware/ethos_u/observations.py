"""What a compiler said of kernels in networks, kept in a file as it comes, and the table that it makes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocomp.errors import UserError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.table import Latency, LatencyTable, NpuParts
from autocomp.kernel import Kernel, WeightCoding

#: A latency must be above zero, also of what is fused into the kernel before it.
_LEAST_US = 1e-3
#: Decimals of a microsecond: a cycle takes a nanosecond or two.
_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Observation:
    """A kernel in one network, in microseconds: of the whole, the array, feature-map memory and weight memory."""

    kernel: Kernel
    us: float
    array_us: float
    sram_us: float
    weights_us: float


class Observations:
    """Of one profile, in a file of one JSON document a line. UserError where the file is of another compiler."""

    def __init__(self, path: Path, accelerator: Accelerator, vela_version: str) -> None:
        self._path = path
        self._origin = {"accelerator": str(accelerator), "vela": vela_version}
        #: Names of the networks that were compiled.
        self.networks: set[str] = set()
        self.encoded: dict[Kernel, int] = {}
        self._seen: dict[Kernel, list[Observation]] = {}
        if path.exists():
            self._read()
        else:
            self._append(self._origin)

    @property
    def kernels(self) -> list[Kernel]:
        return sorted(self._seen)

    def add(self, network: str, observations: Sequence[Observation]) -> None:
        """What was seen in a network of that name, which is told from others by it."""
        self._append({"network": network, "kernels": [astuple(observation) for observation in observations]})
        self._take(network, observations)

    def add_encoded(self, kernel: Kernel, size: int) -> None:
        """Bytes that the weights of a kernel take."""
        self._append({"encoded": astuple(kernel), "bytes": size})
        self.encoded[kernel] = size

    def table(self) -> LatencyTable:
        """The mean of all observations of each kernel, and how far they are from it."""
        return LatencyTable({kernel: self._row(kernel) for kernel in self.kernels})

    def _row(self, kernel: Kernel) -> Latency:
        seen = np.array([(o.us, o.array_us, o.sram_us, o.weights_us) for o in self._seen[kernel]])
        us, array, memory, weights = (round(float(mean), _DECIMALS) for mean in seen.mean(axis=0))
        spread = round(float(np.abs(seen[:, 0] - us).max()), _DECIMALS) if len(seen) > 1 else None
        parts = NpuParts(array, memory, weights, self.encoded.get(kernel, 0))
        return Latency(max(us, _LEAST_US), spread, len(seen), parts)

    def _append(self, document: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(document, separators=(",", ":")) + "\n")

    def _read(self) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        documents = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may have been cut off
        if not documents or documents[0] != self._origin:
            raise UserError(
                f"{self._path} holds what {documents[0] if documents else 'nobody'} said, and now it is "
                f"{self._origin}: add --fresh to start anew"
            )
        if not lines[-1].endswith("\n"):
            self._path.write_text("".join(lines[:-1]), encoding="utf-8")
        for document in documents[1:]:
            if "network" in document:
                seen = [Observation(_kernel(fields[0]), *fields[1:]) for fields in document["kernels"]]
                self._take(document["network"], seen)
            else:
                self.encoded[_kernel(document["encoded"])] = document["bytes"]

    def _take(self, network: str, observations: Sequence[Observation]) -> None:
        self.networks.add(network)
        for observation in observations:
            self._seen.setdefault(observation.kernel, []).append(observation)


def _kernel(fields: list[Any]) -> Kernel:
    """From the JSON form of `astuple`."""
    named = dict(zip(Kernel.__dataclass_fields__, fields, strict=True))
    return Kernel(**named | {"coding": None if named["coding"] is None else WeightCoding(*named["coding"])})
