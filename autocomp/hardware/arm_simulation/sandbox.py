"""The sandbox: an arm64 Linux with Python and ONNX Runtime in a folder of its own, to be run under QEMU.

Nothing on the host changes: apt works on a configuration and state of its own, and packages are only unpacked.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from platformdirs import user_cache_path

from autocomp.errors import RunError, UserError
from autocomp.hardware.arm_simulation.cores import Core

#: Host programs that the simulation calls, and the Debian package of each. LLVM's version is fixed because the
#: calibration belongs to its scheduling models.
TOOLS = {
    "qemu-aarch64": "qemu-user",
    "llvm-mc-19": "llvm-19",
    "llvm-mca-19": "llvm-19",
    "cc": "gcc",
    "apt-get": "apt",
    "dpkg": "dpkg",
}

DEBIAN = "http://deb.debian.org/debian bookworm main"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN_PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libbz2-1.0", "liblzma5", "libexpat1", "libffi8", "libssl3",
    "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal",
)  # fmt: skip
GUEST_PYTHON = "3.11"
WHEELS = ("onnxruntime", "numpy")
WHEEL_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

_COMPLETE = "complete.txt"


def tool(name: str) -> str:
    """Path of a host program; UserError naming its Debian package if it is missing."""
    path = shutil.which(name)
    if path is None:
        raise UserError(
            f"the Arm simulation needs the program {name!r}, which is not installed: apt-get install {TOOLS[name]}"
        )
    return path


def check_qemu(version_text: str) -> None:
    """UserError unless `qemu-aarch64 --version` names a version that speaks the plugin's interface."""
    found = re.search(r"version (\d+)\.(\d+)", version_text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (7, 2) <= version < (9, 0):
        raise UserError(
            "the Arm simulation needs QEMU 7.2 to 8.2 (plugin interface 1), "
            f"got {version_text.strip().splitlines()[0] if version_text.strip() else 'no version'}: "
            "use the package qemu-user of Debian 12"
        )


@dataclass(frozen=True)
class Sandbox:
    """A prepared sandbox.

    root: stands for / to programs under QEMU. plugin: the compiled block-counting plugin.
    """

    core: Core
    root: Path
    plugin: Path

    def command(self, script: Path, arguments: Sequence[str], plugin_out: Path | None = None) -> list[str]:
        """Command line that runs a Python script on the simulated core, counting blocks if `plugin_out` is given."""
        counting = ["-plugin", f"{self.plugin},out={plugin_out}"] if plugin_out else []
        emulator = [tool("qemu-aarch64"), "-cpu", self.core.qemu_cpu, "-L", str(self.root), *counting]
        return [*emulator, str(self.root / f"usr/bin/python{GUEST_PYTHON}"), str(script), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of programs in the sandbox: nothing of the host's, one thread."""
        return {
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": str(self.root / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
        }


def prepare(core: Core, cache: Path | None = None) -> Sandbox:
    """Download, unpack and compile what is missing; seconds if all is there, about a minute if nothing is.

    cache: folder that keeps it all; by default the user's cache folder of autocomp.
    """
    for name in TOOLS:
        tool(name)
    version = subprocess.run([tool("qemu-aarch64"), "--version"], capture_output=True, text=True, check=False)
    check_qemu(version.stdout)
    cache = cache or user_cache_path("autocomp") / "arm_simulation"
    cache.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in WHEELS}
    root = cache / core.name
    if not _is_complete(root, versions):
        _build_root(root, versions, cache)
    _write_cpu(root, core)
    return Sandbox(core, root, _compile_plugin(cache))


def _contents(versions: Mapping[str, str]) -> str:
    """What a complete root folder holds, as text to compare."""
    return "\n".join((DEBIAN, *DEBIAN_PACKAGES, *(f"{name}=={version}" for name, version in versions.items()))) + "\n"


def _is_complete(root: Path, versions: Mapping[str, str]) -> bool:
    marker = root / _COMPLETE
    return marker.is_file() and marker.read_text() == _contents(versions)


def _build_root(root: Path, versions: Mapping[str, str], cache: Path) -> None:
    """Fill a new root folder beside the old one, then put it in its place: a killed build leaves no half root."""
    with TemporaryDirectory(dir=cache, prefix="building-") as scratch:
        work = Path(scratch)
        fresh = work / "root"
        fresh.mkdir()
        for package in _download_debian(work / "apt"):
            _call([tool("dpkg"), "-x", str(package), str(fresh)])
        for wheel in _download_wheels(versions, work / "wheels"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(fresh / "site")
        (fresh / _COMPLETE).write_text(_contents(versions))
        if root.exists():
            shutil.rmtree(root)
        fresh.rename(root)


def _download_debian(work: Path) -> list[Path]:
    """arm64 packages of Debian, fetched and verified by an apt that knows no other architecture."""
    for folder in ("state/lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    (work / "state/status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={DEBIAN_KEYRING}] {DEBIAN}\n")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": work / "state",
        "Dir::State::status": work / "state/status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
    }
    config = work / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    environment = {**os.environ, "APT_CONFIG": str(config)}
    _call([tool("apt-get"), "update"], environment=environment)
    _call([tool("apt-get"), "download", *DEBIAN_PACKAGES], environment=environment, folder=work / "packages")
    return sorted((work / "packages").glob("*.deb"))


def _download_wheels(versions: Mapping[str, str], folder: Path) -> list[Path]:
    """aarch64 wheels of the versions that the host has."""
    platforms = [word for platform in WHEEL_PLATFORMS for word in ("--platform", platform)]
    requirements = [f"{name}=={version}" for name, version in versions.items()]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    _call([*pip, "--python-version", GUEST_PYTHON, "--implementation", "cp", *platforms, *requirements])
    return sorted(folder.glob("*.whl"))


def _write_cpu(root: Path, core: Core) -> None:
    """Fake what Linux says about the core. Without it ONNX Runtime, which asks, crashes under QEMU."""
    contents = {f"sys/devices/system/cpu/{name}": text + "\n" for name, text in core.sysfs().items()}
    contents["proc/cpuinfo"] = core.cpuinfo()
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:  # another simulation may be reading it
            path.write_text(text)


def _compile_plugin(cache: Path) -> Path:
    source = files("autocomp.hardware.arm_simulation") / "plugin.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    plugin = cache / f"plugin-{digest}.so"
    if not plugin.exists():
        fresh = plugin.with_suffix(f".{os.getpid()}")
        with as_file(source) as path:
            _call([tool("cc"), "-O2", "-shared", "-fPIC", "-o", str(fresh), str(path)])
        fresh.rename(plugin)
    return plugin


def _call(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
    """Run a program in silence; RunError with the end of what it said if it fails."""
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise RunError(f"{Path(command[0]).name} failed with exit code {done.returncode}: {said}")
