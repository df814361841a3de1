"""Arm cores that can be simulated, and what Linux would say about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autocomp.errors import unknown_name


@dataclass(frozen=True, slots=True)
class Core:
    """A core, the board that its cycles are calibrated on, and how far off the calibration is.

    part: the number of the core in the register MIDR_EL1 (implementer Arm, 0x41); ONNX Runtime chooses kernels by it.
    features: as /proc/cpuinfo lists them; ONNX Runtime chooses kernels by them too (asimddp: int8 dot products).
    qemu_cpu, mca_cpu: the core's name for QEMU, and the nearest scheduling model of LLVM.
    scale: board time / simulated time, fitted on published single-thread times of whole networks.
    scale_error: relative error of a whole network's time on that board after scaling.
    read_gb_per_s: sustained read bandwidth of one thread from DRAM, 1e9 bytes per second.
    """

    name: str
    board: str
    part: int
    features: str
    qemu_cpu: str
    mca_cpu: str
    clock_ghz: float
    scale: float
    scale_error: float
    read_gb_per_s: float

    def cpuinfo(self) -> str:
        """/proc/cpuinfo of a machine with one such core."""
        lines = (
            "processor\t: 0", "BogoMIPS\t: 108.00", f"Features\t: {self.features}", "CPU implementer\t: 0x41",
            "CPU architecture: 8", "CPU variant\t: 0x0", f"CPU part\t: {self.part:#05x}", "CPU revision\t: 3",
        )  # fmt: skip
        return "\n".join(lines) + "\n\n"

    def sysfs(self) -> dict[str, str]:
        """Files under /sys/devices/system/cpu of a machine with one such core, by path relative to it."""
        only_this_core = dict.fromkeys(("possible", "present", "online", "cpu0/topology/core_siblings_list"), "0")
        return only_this_core | {
            "kernel_max": "0",
            "cpu0/topology/physical_package_id": "0",
            "cpu0/topology/core_id": "0",
            "cpu0/topology/core_siblings": "1",
            "cpu0/topology/thread_siblings_list": "0",
            "cpu0/cpufreq/cpuinfo_max_freq": f"{self.clock_ghz * 1e6:.0f}",
            "cpu0/cpufreq/cpuinfo_min_freq": "600000",
        }

    def microseconds(self, cycles: float) -> float:
        """Calibrated time of that many simulated cycles, in µs."""
        return cycles / (self.clock_ghz * 1e3) * self.scale

    def read_microseconds(self, size_bytes: int) -> float:
        """Time to read that many bytes from DRAM, in µs: no kernel that needs them all can be faster."""
        return size_bytes / (self.read_gb_per_s * 1e3)


_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
_ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"

# Scales: ncnn's whole networks, counted and priced by this same pipeline, against the single-thread times in ncnn's
# benchmark/README.md. experiments/arm_calibration prints those of the A72 and the A53; the A76's is an earlier study's.
# The models of LLVM are those that came nearest: neoverse-n1 is the A76's server twin, cortex-a57 the A72's
# predecessor, and cortex-a55 the A53's successor (LLVM's model of the A53 itself is 2 to 4 times too slow on floats).
# Bandwidth, Raspberry Pi 5: tinymembench copies 4.9 to 5.7 GB/s (github.com/geerlingguy/sbc-reviews, issue 21), which
# moves twice that over the bus; 10 GB/s of pure reading is assumed. The 5 and 2.5 GB/s of the older boards are
# assumptions: half of it for each generation before.
_CORES = (
    Core(
        "cortex-a76", "Raspberry Pi 5", 0xD0B, _ARMV8_2, qemu_cpu="cortex-a76", mca_cpu="neoverse-n1",
        clock_ghz=2.4, scale=1.17, scale_error=0.13, read_gb_per_s=10.0,
    ),
    Core(
        "cortex-a72", "Raspberry Pi 4", 0xD08, _ARMV8_0, qemu_cpu="cortex-a72", mca_cpu="cortex-a57",
        clock_ghz=1.8, scale=1.58, scale_error=0.14, read_gb_per_s=5.0,
    ),
    Core(
        "cortex-a53", "Raspberry Pi 3 B+", 0xD03, _ARMV8_0, qemu_cpu="cortex-a53", mca_cpu="cortex-a55",
        clock_ghz=1.4, scale=1.32, scale_error=0.21, read_gb_per_s=2.5,
    ),
)  # fmt: skip

#: Cores by name.
CORES: Mapping[str, Core] = MappingProxyType({core.name: core for core in _CORES})


def core(name: str) -> Core:
    """The core of that name; UserError if there is none."""
    if name not in CORES:
        raise unknown_name("core", name, CORES)
    return CORES[name]
