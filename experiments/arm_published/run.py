"""Our whole-network estimates beside the times that others published, with the error of each time and each ratio.

Prints one JSON line per time and per ratio; the last is the summary.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from published import SOURCES, Source, Version

from autocomp.compress.trace import trace
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profile import find_profile
from autocomp.kernel import Kernel
from autocomp.policy import INT8, Policy
from autocomp.tasks.architectures import build


@dataclass(frozen=True, slots=True)
class Ours:
    """Our estimate and its 90 % band, in ms."""

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A published figure (ms, or a ratio of two) and ours. kind: of figure, to sum up by.

    inside: whether it lies in our 90 % band; None where that cannot be asked of it.
    """

    kind: str
    profile: str
    ours: float
    published: float
    inside: bool | None = None

    @property
    def error(self) -> float:
        """How far ours is off, as a fraction of what was published."""
        return self.ours / self.published - 1

    @property
    def factor(self) -> float:
        """How many times the smaller of the two the larger one is."""
        return max(self.ours / self.published, self.published / self.ours)


@cache
def model(profile: str) -> LatencyModel:
    found = find_profile(profile)
    return LatencyModel.from_table(found.latencies, found.calibration)


@cache
def kernels(version: Version) -> tuple[Kernel, ...]:
    """What ONNX Runtime executes of the network: all of it in the version's precision, conversions included."""
    network = build(version.network, width=version.width)
    spec = trace(network.module, network.example, version.network).spec
    policy = Policy({layer.name: INT8 for layer in spec.layers}) if version.precision == "int8" else Policy()
    return tuple(kernel for kernel, _ in network_kernels(spec, policy))


@cache
def estimate(profile: str, version: Version) -> Ours:
    """Errors of kernels are taken to be those of the whole device, so the ends of their bands are added up."""
    found = model(profile).predict(kernels(version))
    return Ours(*(float(part.sum()) / 1e3 for part in (found.us, found.low_us, found.high_us)))


def times(source: Source) -> Iterator[Compared]:
    """Ours against the published times; where several threads were timed, against those and their one-thread times."""
    for version, published in source.milliseconds.items():
        ours = estimate(source.profile, version)
        one_thread = source.one_thread_ms(version)
        band = {"low_ms": round(ours.low_ms, 1), "high_ms": round(ours.high_ms, 1)}
        if source.threads > 1:
            yield Compared(f"time, {source.threads} threads", source.profile, ours.ms, published)
            band["published_as_one_thread"] = round(one_thread, 1)
        inside = ours.low_ms <= one_thread <= ours.high_ms
        kind = f"time, {'as ' if source.threads > 1 else ''}1 thread"
        compared = Compared(kind, source.profile, ours.ms, one_thread, inside)
        show(source, str(version), ours.ms, published, compared.error, band | {"inside_band": inside})
        yield compared


def pairs(milliseconds: Mapping[Version, float]) -> Iterator[tuple[str, Version, Version]]:
    """Kind, numerator and denominator of the ratios that a source tells."""
    for precision, group in itertools.groupby(milliseconds, key=lambda version: version.precision):
        first, *others = group
        yield from (("network/network", other, first) for other in others)
        if precision == "int8":
            yield from (("int8/fp32", v, Version(v.network, "fp32", v.width)) for v in (first, *others))


def ratios(source: Source) -> Iterator[Compared]:
    for kind, above, below in pairs(source.milliseconds):
        ours = estimate(source.profile, above).ms / estimate(source.profile, below).ms
        published = source.milliseconds[above] / source.milliseconds[below]
        compared = Compared(kind, source.profile, ours, published)
        show(source, f"{above} / {below}", ours, published, compared.error, {})
        yield compared


def show(
    source: Source, figure: str, ours: float, published: float, error: float, more: Mapping[str, float | bool]
) -> None:
    line = {"profile": source.profile, "device": source.device, "source": source.citation, "differs": source.differs}
    numbers = {"ours": round(ours, 3), "published": round(published, 3), "error": round(error, 3)}
    print(json.dumps(line | {"figure": figure} | numbers | dict(more), ensure_ascii=False), flush=True)


def summarized(compared: Iterable[Compared]) -> dict[str, float]:
    errors = [abs(one.error) for one in compared]
    return {"figures": len(errors), "mean": round(sum(errors) / len(errors), 3), "max": round(max(errors), 3)}


def banded(compared: Iterable[Compared]) -> dict[str, float]:
    """How many times of one thread lie in our band, and how far the farthest is off."""
    held = [one for one in compared if one.inside is not None]
    inside = sum(one.inside is True for one in held)
    return {"figures": len(held), "inside_band": inside, "largest_factor": round(max(one.factor for one in held), 2)}


def main() -> None:
    found = [one for source in SOURCES for one in (*times(source), *ratios(source))]
    kinds = dict.fromkeys(one.kind for one in found)
    summary = {f"error of {kind}": summarized(one for one in found if one.kind == kind) for kind in kinds}
    profiles = dict.fromkeys(one.profile for one in found)
    print(json.dumps(summary | {name: banded(one for one in found if one.profile == name) for name in profiles}))


if __name__ == "__main__":
    main()
