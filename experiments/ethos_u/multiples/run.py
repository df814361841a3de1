"""Which numbers of channels does the array of an Ethos-U like? Cycles of one convolution as its channels grow by one.

    python experiments/ethos_u/multiples/run.py [npu_ethos_u55 npu_ethos_u65 npu_ethos_u85]

Compiles a 3×3 convolution between two others, at 28×28 with weights of 2 bits, so that multiply-accumulates are what it
waits for; its output channels, then its input channels, go from 33 to 64. Prints a JSON line for each device and side:
where cycles step up, and what a count costs over the smallest count that is a multiple of 8 and no smaller.
"""

import argparse
import json
import tempfile
from pathlib import Path

from autocomp.compress.synthetic import GaussianWeights
from autocomp.hardware.ethos_u.compiler import Vela
from autocomp.hardware.ethos_u.observe import observe
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.network import NETWORK_INPUT, Channels, KernelNode, LayerSpec, NetworkSpec
from autocomp.policy import LayerPolicy, Policy

SIZE, COUNTS, FIXED = 28, range(33, 65), 64


def chain(first: int, second: int) -> NetworkSpec:
    """16 → first → second → 16 channels; the middle convolution is the one that is looked at."""
    layers, nodes = [], []
    for index, (inputs, outputs) in enumerate([(16, first), (first, second), (second, 16)]):
        name, window = f"layer{index}", 3 if index == 1 else 1
        ends = [Channels(((None, count),)) for count in (inputs, outputs)]
        layers.append(LayerSpec(name, "conv", (outputs, inputs, window, window), *ends, SIZE * SIZE))
        nodes.append(
            KernelNode(
                name, "conv", (index - 1 if index else NETWORK_INPUT,), *ends, SIZE, SIZE, window, window, layer=name,
                output=index == 2,
            )
        )  # fmt: skip
    return NetworkSpec("chain", (16, SIZE, SIZE), tuple(layers), (), tuple(nodes))


def cycles(profile: HardwareProfile, network: NetworkSpec, vela: Vela, folder: Path) -> int:
    """Of the array, for the middle convolution."""
    assert profile.accelerator is not None
    policy = Policy({layer.name: LayerPolicy(2, "int8") for layer in network.layers})
    weights = GaussianWeights(0)
    _, found = observe(
        network, policy, lambda layer, chosen: weights.levels(layer.shape(chosen), chosen.layer(layer.name)), vela,
        profile.accelerator, folder,
    )  # fmt: skip
    return found[1].array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", nargs="*", default=["npu_ethos_u55", "npu_ethos_u65", "npu_ethos_u85"])
    with Vela() as vela, tempfile.TemporaryDirectory() as folder:
        for device in parser.parse_args().devices:
            profile = find_profile(device)
            for side in ("out", "in"):
                sizes = [(FIXED, count) if side == "out" else (count, FIXED) for count in COUNTS]
                found = [cycles(profile, chain(*size), vela, Path(folder)) for size in sizes]
                steps = [
                    count for count, one, next_ in zip(COUNTS, found, found[1:], strict=False) if next_ > one * 1.01
                ]
                up_to_8 = [
                    one / found[-(-count // 8) * 8 - COUNTS[0]] for count, one in zip(COUNTS, found, strict=True)
                ]
                print(
                    json.dumps(
                        {
                            "device": device, "channels": side, "steps_after": steps,
                            "of_the_next_multiple_of_8": [round(min(up_to_8), 3), round(max(up_to_8), 3)],
                            "cycles": dict(zip(COUNTS, found, strict=True)),
                        }
                    ),
                    flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
