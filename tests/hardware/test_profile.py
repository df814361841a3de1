"""Profiles: what ships loads and says what it executes; each fault is one line."""

import os
from pathlib import Path

import onnxruntime
import pytest
from controllers.analytic import chain

from autocomp.errors import UserError
from autocomp.hardware.constraints import CONSTRAINTS, reason
from autocomp.hardware.profile import ON_THE_SPOT, HardwareProfile, find_profile, profile_names
from autocomp.hardware.runtime_version import installed_version
from autocomp.network import Channels, LayerSpec
from autocomp.policy import FLOAT, INT8, WEIGHT_BITS, LayerPolicy, Policy, clustered
from autocomp.resources import data_folder

TEXT = (data_folder("hw_profiles") / "host_cpu.yaml").read_text(encoding="utf-8")
TABLE = (
    "op,precision,in_channels,out_channels,height,width,kernel_h,kernel_w,stride,groups,latency_us,spread_us\n"
    "conv,int8,16,32,8,8,3,3,1,1,12.5,\n"
)


def layer(
    op: str = "conv2d", shape: tuple[int, ...] = (32, 16, 3, 3), groups: int = 1, depthwise: bool = False
) -> LayerSpec:
    channels = Channels((("group", shape[0]),))
    return LayerSpec("layer", op, shape, channels, channels, 64, groups, depthwise)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_that_ships_is_complete(name: str) -> None:
    profile = find_profile(name)
    assert profile.name == name
    assert profile.description
    assert str(profile.provenance).startswith(profile.provenance.kind)
    for bits in WEIGHT_BITS:
        for activation in ("float", "int8"):
            refusal = profile.veto(layer(), LayerPolicy(bits, activation))
            # A GPU unpacks weights and computes in float, and an NPU has no floating point.
            on_gpu = "gpu" in name and activation == "int8"
            runs = not on_gpu and not (profile.integer_only and activation == "float")
            assert (refusal is None) == runs
    assert (profile.veto(layer(), FLOAT) is None) == (not profile.integer_only)


def test_the_simulated_profile_is_honest_about_its_error() -> None:
    profile = find_profile("mobile_arm")
    assert profile.provenance.kind == "simulated"
    assert profile.calibration["relative_error"] >= profile.calibration["board_left_out_error_max"]


def test_a_grouped_integer_convolution_is_vetoed_with_the_reason() -> None:
    profile = find_profile("host_cpu")
    grouped = layer(shape=(32, 4, 3, 3), groups=4)
    assert profile.veto(grouped, INT8) == reason(CONSTRAINTS["integer_convolution_is_not_grouped"])
    assert profile.veto(grouped, FLOAT) is None
    assert profile.veto(layer(shape=(32, 1, 3, 3), groups=32, depthwise=True), INT8) is None
    assert profile.veto(layer(shape=(8, 8, 3, 3, 3)), INT8) == reason(
        CONSTRAINTS["integer_convolution_has_at_most_two_axes"]
    )


def with_coding(clusters: str = "[16]", patterns: str = '["2:4"]') -> str:
    """A profile whose integer kernels gain by codebooks and patterns of zeros."""
    return TEXT.replace("activation: int8", f"activation: int8\n    clusters: {clusters}\n    patterns: {patterns}", 1)


def test_codebooks_and_patterns_are_vetoed_unless_the_profile_lists_them() -> None:
    plain, coding = HardwareProfile.parse(TEXT), HardwareProfile.parse(with_coding())
    two_of_four = LayerPolicy(8, "int8", 0.5, pattern="2:4")
    both = LayerPolicy(8, "int8", 0.5, 16, "2:4")
    for decision in (clustered(16), two_of_four, both):
        assert coding.veto(layer(), decision) is None
    assert "gains nothing from weights in clusters" in str(plain.veto(layer(), clustered(16)))
    assert "gains nothing from zeros in the pattern 2:4" in str(plain.veto(layer(), two_of_four))
    assert "clusters" in str(coding.veto(layer(), clustered(4)))
    assert "pattern block" in str(coding.veto(layer(), LayerPolicy(8, "int8", 0.5, pattern="block")))
    assert coding.veto(layer(), INT8) is None and coding.veto(layer(), LayerPolicy(8, "int8", 0.5)) is None


@pytest.mark.parametrize("name", ["mobile_arm", "host_cpu"])
def test_a_policy_for_an_npu_is_refused_in_one_line_on_a_cpu(name: str) -> None:
    profile = find_profile(name)
    with pytest.raises(
        UserError, match=r"mine.json: layer conv0: w8a8 c16: .* gains nothing from weights in"
    ) as caught:
        profile.check_executable(chain(2, 1), Policy({"conv0": clustered(16)}), "mine.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"clusters": "[12]"}, "clusters: 12 is not one of 2, 4, 8, 16, 32"),
        ({"clusters": "16"}, "clusters"),
        ({"patterns": '["1:4"]'}, "patterns"),
    ],
)
def test_a_wrong_list_of_codebooks_or_patterns_is_named(change: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        HardwareProfile.parse(with_coding(**change))
    with pytest.raises(UserError, match="clusters need 8 among weight_bits"):
        HardwareProfile.parse(TEXT.replace("activation: float", "activation: float\n    clusters: [16]"))


def test_what_has_no_kernel_is_vetoed() -> None:
    floats_only = HardwareProfile.parse(TEXT.replace("activation: int8", "activation: float"))
    said = floats_only.veto(layer("linear", (10, 32)), LayerPolicy(4, "int8", 0.5))
    assert said is not None and "linear" in said and "w4a8" in said


def test_bytes_only_is_said_of_weights_that_run_as_float() -> None:
    profile = find_profile("host_cpu")
    weight_only, integer = profile.capability(layer(), LayerPolicy(4)), profile.capability(layer(), INT8)
    assert weight_only is not None and weight_only.bytes_only and weight_only.runs_as == "fp32"
    assert integer is not None and not integer.bytes_only and integer.runs_as == "int8"
    assert profile.unstructured_sparsity_bytes_only


FAULTS = {
    "unknown key": ("threads: 1", "thread: 1", "unknown key 'thread': did you mean 'threads'?"),
    "unknown nested key": ("  version:", "  versoin:", "unknown key 'runtime.versoin': did you mean 'version'?"),
    "unknown key in a list": ("runs_as: int8", "run_as: int8", "did you mean 'runs_as'?"),
    "missing key": ("unit: us\n", "", "the key 'unit' is missing"),
    "key twice": ("unit: us\n", "unit: us\nunit: ms\n", "'unit' stands twice"),
    "wrong type": ("threads: 1", "threads: one", "threads: input should be a valid integer"),
    "no threads": ("threads: 1", "threads: 0", "threads"),
    "number as text": ("version: installed", "version: 1.32", "runtime.version"),
    "no version": ("version: installed", "version: newest", "expected a version such as 1.32.0"),
    "version of its own": ("version: installed", 'version: "1.32.0"', "runtime.version is 'installed' exactly where"),
    "table of any version": (
        f"table: {ON_THE_SPOT}",
        "table: host.csv",
        "runtime.version is 'installed' exactly where",
    ),
    "huge number": ("relative_error: 0.12", f"relative_error: 0.1\n  scale: {'9' * 400}", "scale must be a number"),
    "digits without end": ("threads: 1", f"threads: {'9' * 5000}", "is not YAML"),
    "tag that does not fit": ("threads: 1", "threads: !!int ''", "is not YAML"),
    "date that does not fit": ("threads: 1", "threads: !!timestamp never", "is not YAML"),
    "aliases": ("threads: 1", "threads: &one 1\nmore: *one", "aliases (*name) are not read"),
    "billion laughs": (
        "executes:\n",
        "a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\nexecutes:\n",
        "aliases (*name) are not read",
    ),
    "nested without end": ("constraints:\n", f"constraints: {'[' * 5000}\n", "is not YAML"),
    "escape sequence": ("title: This machine's CPU", 'title: "\\e[2J"', "title: holds the character U+001B"),
    "half a character": ("title: This machine's CPU", 'title: "\\ud800"', "title: input should be a valid string"),
    "long text": ("title: This", f"title: {'long ' * 500}", "title: string should have at most 2000 characters"),
    "keys that are no text": ("threads: 1", "1: threads", "expected keys that are text"),
    "cut off": ("axes\n", "axes", "was cut off"),
    "two documents": ("threads: 1", "---\nthreads: 1", "is not YAML"),
    "unknown provenance": ("kind: measured", "kind: guessed", "provenance.kind"),
    "unknown unit": ("unit: us", "unit: seconds", "unit"),
    "NaN": ("relative_error: 0.12", "relative_error: .nan", "relative_error must be a number"),
    "no band": ("relative_error: 0.12", "relative: 0.08", "relative_error is missing"),
    "unknown bits": ("[8]", "[9]", "executes"),
    "unknown constraint": ("- integer_convolution_is_not_grouped", "- integer_convolution_not_grouped", "did you mean"),
    "table elsewhere": (f"table: {ON_THE_SPOT}", "table: ../other.csv", "table: expected the name of a .csv file"),
    "not a mapping": (TEXT, "- 1\n", "expected keys with values"),
    "empty": (TEXT, "", "expected keys with values"),
    "not YAML": ("name: host_cpu", "name: [", "is not YAML"),
    "python object": ("name: host_cpu", "name: !!python/object:os.system {}", "is not YAML"),
    "key that is a list": ("unit: us", "? [a]\n: b", "is not YAML"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    old, new, said = FAULTS[fault]
    assert old in TEXT
    path = tmp_path / "device.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        find_profile(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'host_cpu'"):
        find_profile("host-cpu")
    with pytest.raises(UserError, match="does not exist"):
        find_profile(str(tmp_path / "none.yaml"))
    (tmp_path / "elsewhere.yaml").write_text(TEXT)
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "device.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(UserError, match="symbolic link"):
        find_profile(str(folder / "device.yaml"))


def test_a_file_that_is_no_profile_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("# " + "x" * 200_000)
    with pytest.raises(UserError, match="larger than 100,000 bytes"):
        find_profile(str(tmp_path / "large.yaml"))
    (tmp_path / "binary.yaml").write_bytes(TEXT.encode().replace(b"machine", b"mach\xefne", 1))
    with pytest.raises(UserError, match="got byte 10 that is not"):
        find_profile(str(tmp_path / "binary.yaml"))
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        HardwareProfile.read(tmp_path / "loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="no regular file"):  # reading a pipe that nobody writes to never ends
        HardwareProfile.read(tmp_path / "pipe.yaml")


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "device.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert find_profile(str(tmp_path / "device.yaml")).digest() == HardwareProfile.parse(TEXT).digest()


def shipped(folder: Path, version: str = "1.32.0", rows: int | None = None) -> HardwareProfile:
    """A profile with a table of one row beside it."""
    text = TEXT.replace(ON_THE_SPOT, "device.csv").replace("version: installed", f'version: "{version}"')
    (folder / "device.yaml").write_text(text if rows is None else f"{text}rows: {rows}\n")
    (folder / "device.csv").write_text(TABLE)
    return find_profile(str(folder / "device.yaml"))


def test_a_table_that_lost_whole_rows_is_refused(tmp_path: Path) -> None:
    assert len(shipped(tmp_path, rows=1).latencies) == 1
    with pytest.raises(UserError, match=r"has 1 rows where host_cpu\.yaml says 2: cut off"):
        shipped(tmp_path, rows=2).latencies


@pytest.mark.parametrize(
    ("filled_with", "stale"),
    [("1.32.0", False), ("1.32.7", False), ("1.31.0", True), ("1.3.0", True), ("2.32.0", True), ("1.320.0", True)],
)
def test_a_table_of_another_release_is_stale(
    filled_with: str, stale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocomp.hardware.profile.installed_version", lambda name: "1.32.1")
    profile = shipped(tmp_path, filled_with)
    if stale:
        assert profile.staleness == (
            f"the latencies of host_cpu are stale: filled with onnxruntime {filled_with}, and 1.32.1 is installed; "
            "fill the table anew with autocomp profile"
        )
        assert profile.provenance_note.endswith(f"STALE: {profile.staleness}")
    else:
        assert profile.staleness is None
        assert profile.provenance_note == str(profile.provenance)


def test_what_is_measured_with_whatever_is_installed_is_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocomp.hardware.profile.installed_version", lambda name: "99.0.0")
    assert find_profile("host_cpu").staleness is None
    stale = [name for name in profile_names() if find_profile(name).staleness is not None]
    assert stale == [name for name in profile_names() if not find_profile(name).on_the_spot]


def test_without_the_runtime_nothing_is_said_of_its_version(tmp_path: Path) -> None:
    assert installed_version("onnxruntime") == onnxruntime.__version__
    assert installed_version("no-such-runtime") is None
    assert installed_version("") is None


def test_the_digest_follows_profile_and_table(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"

    def digest(text: str, table: str) -> str:
        path.write_text(text.replace(ON_THE_SPOT, "device.csv").replace("version: installed", 'version: "1.32.0"'))
        (tmp_path / "device.csv").write_text(table)
        return find_profile(str(path)).digest()

    first = digest(TEXT, TABLE)
    assert first == digest(TEXT, TABLE)
    assert first != digest(TEXT, TABLE.replace("12.5", "12.6"))
    assert first != digest(TEXT.replace("threads: 1", "threads: 2"), TABLE)
    assert len(find_profile(str(path)).latencies) == 1
