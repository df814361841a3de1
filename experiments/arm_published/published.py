"""Whole-network times that others published for Arm cores. Nothing here was used to fit anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autocomp.kernel import Precision


@dataclass(frozen=True, slots=True)
class Version:
    """A network as somebody timed it. width: multiplier of its channels."""

    network: str
    precision: Precision
    width: float = 1.0

    def __str__(self) -> str:
        return f"{self.network}{'' if self.width == 1 else f' {self.width:g}x'} {self.precision}"


@dataclass(frozen=True, slots=True)
class Source:
    """One device in one publication.

    profile: of ours, nearest to the device. milliseconds: by version, in the order in which ratios are taken: each
    version against the first of its precision, and int8 against fp32 of the same network. thread_gain: how many times
    faster that many threads are than one, so that times of several threads can be held against ours at all; empty
    where one thread was timed. It is ncnn's, which was timed with both on such cores (its benchmark/README.md).
    """

    citation: str
    device: str
    core: str
    runtime: str
    threads: int
    profile: str
    milliseconds: Mapping[Version, float]
    thread_gain: Mapping[Version, float] = field(default_factory=dict)

    def one_thread_ms(self, version: Version) -> float:
        """Published time, or what it would be on one thread."""
        return self.milliseconds[version] * self.thread_gain.get(version, 1.0)

    @property
    def differs(self) -> str:
        """What is not the same as in our table."""
        return f"{self.core}, {self.runtime}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def _versions(precision: Precision, **numbers: float) -> dict[Version, float]:
    return {Version(network, precision): number for network, number in numbers.items()}


_XNNPACK = "XNNPACK, README.md"
_TFLITE = "TensorFlow Lite"

SOURCES = (
    Source(
        _XNNPACK, "Raspberry Pi 4", "Cortex-A72, clock not said", "XNNPACK, 64-bit", 4, "raspberry_pi_4",
        _versions("fp32", mobilenet_v1=77, mobilenet_v2=46) | _versions("int8", mobilenet_v1=24, mobilenet_v2=17),
        # mobilenet_int8 stands for both integer networks.
        _versions("fp32", mobilenet_v1=123.76 / 60.74, mobilenet_v2=92.98 / 61.63)
        | _versions("int8", mobilenet_v1=84.66 / 34.19, mobilenet_v2=84.66 / 34.19),
    ),
    Source(
        f"{_XNNPACK} (February 2020)", "Raspberry Pi 3 B+", "Cortex-A53 at 1.4 GHz", "XNNPACK, 32-bit", 4, "cortex_a53",
        _versions("fp32", mobilenet_v1=115, mobilenet_v2=79),
        _versions("fp32", mobilenet_v1=204.62 / 107.84, mobilenet_v2=158.69 / 110.64),
    ),
    Source(
        f"{_XNNPACK} (March 2020)", "Pixel 3a", "Kryo 360 (Cortex-A75) at 2.0 GHz", "XNNPACK", 1, "mobile_arm",
        _versions("fp32", mobilenet_v1=88, mobilenet_v2=55),
    ),
    Source(
        f"{_XNNPACK} (March 2020)", "Pixel 2", "Kryo 280 (Cortex-A73) at 2.35 GHz", "XNNPACK", 1, "mobile_arm",
        _versions("fp32", mobilenet_v1=86, mobilenet_v2=53),
    ),
    Source(
        "PocketFlow, documentation", "Snapdragon 845", "Kryo 385 (Cortex-A75) at 2.8 GHz", _TFLITE, 1, "mobile_arm",
        _versions("fp32", mobilenet_v1=124.5, mobilenet_v2=120.6)
        | _versions("int8", mobilenet_v1=56.1, mobilenet_v2=49.0),
    ),
    Source(
        "He et al., AMC (2018)", "Pixel 1", "Kryo at 2.15 GHz", _TFLITE, 1, "mobile_arm",
        _versions("fp32", mobilenet_v1=123) | {Version("mobilenet_v1", "fp32", 0.75): 72.5},
    ),
    Source(
        "Sandler et al., MobileNetV2 (2018), table 4", "Pixel 1", "Kryo at 2.15 GHz", _TFLITE, 1, "mobile_arm",
        _versions("fp32", mobilenet_v1=113, mobilenet_v2=75) | {Version("mobilenet_v2", "fp32", 1.4): 143},
    ),
    Source(
        "EfficientNet-Lite, README.md", "Pixel 4", "Kryo 485 (Cortex-A76), 2.84 and 2.42 GHz", _TFLITE, 4, "mobile_arm",
        _versions("fp32", efficientnet_lite0=12, efficientnet_lite1=18, efficientnet_lite2=26)
        | _versions("int8", efficientnet_lite0=6.5, efficientnet_lite1=9.1, efficientnet_lite2=12),
        # An RK3588's big cores on efficientnet_b0 and mobilenet_int8.
        {Version(f"efficientnet_lite{i}", "fp32"): 55.53 / 17.51 for i in range(3)}
        | {Version(f"efficientnet_lite{i}", "int8"): 32.51 / 8.89 for i in range(3)},
    ),
)  # fmt: skip
