"""Measuring by SSH, against a real sshd on the loopback interface with keys and settings of its own."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import small_bundle
from needs import needs_tool

from autocomp.errors import RunError, UserError
from autocomp.hardware import runner
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.results import read_results
from autocomp.hardware.profiling.ssh import Board, check_board, measure_on
from autocomp.kernel import Kernel


@dataclass(frozen=True)
class Server:
    """A running sshd. home: where commands start; config: for ssh, with the key that is let in."""

    port: int
    home: Path
    config: Path

    def board(self, python: str = sys.executable) -> Board:
        return Board.of(f"{getpass.getuser()}@127.0.0.1:{self.port}", python, self.config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    sshd = needs_tool("sshd", "openssh-server")
    needs_tool("ssh-keygen", "openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    home = folder / "home"
    home.mkdir()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f'SetEnv HOME={home} OMP_NUM_THREADS=1\nForceCommand cd {home} && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n"
    )
    if os.geteuid() == 0:  # where sshd puts the child that has no privileges yet
        Path("/run/sshd").mkdir(exist_ok=True)
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                assert process.poll() is None, (folder / "log").read_text()
                with socket.socket() as knock:
                    if knock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield Server(port, home, folder / "ssh_config")
        finally:
            process.terminate()


class Recorder:
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.done: list[int] = []

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self.phases.append(name)

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        self.done.append(done)


def test_a_board_is_measured_and_its_results_come_back(server: Server, tmp_path: Path) -> None:
    bundle, recorder = small_bundle.make(tmp_path / "bundle"), Recorder()
    check_board(server.board())
    assert measure_on(server.board(), bundle, None, False, recorder)
    assert read_results(bundle).complete
    assert recorder.phases == ["copying the bundle", "measuring on the board"]
    assert recorder.done[-1] == len(small_bundle.KERNELS)
    content = (bundle / runner.RESULTS).read_bytes()
    assert measure_on(server.board(), bundle, None, False, Recorder())  # nothing is left to measure
    assert (bundle / runner.RESULTS).read_bytes() == content
    assert len(list(server.home.glob(".cache/autocomp/bundle-*"))) == 1


def test_the_command_does_it_all_in_one_go(server: Server, tmp_path: Path) -> None:
    tasks = Path(__file__).parents[1] / "end_to_end" / "toy_tasks.py"
    result = subprocess.run(
        [
            sys.executable, "-m", "autocomp", "profile", "mobile_arm", "--task", f"{tasks}:small", "--name", "my_board",
            "--ssh", f"{getpass.getuser()}@127.0.0.1:{server.port}", "--ssh-config", str(server.config),
            "--remote-python", sys.executable, "--json",
        ],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout)
    profile = find_profile(str(tmp_path / "my_board.yaml"))
    assert said["complete"] and said["rows"] == len(profile.latencies) > 20
    assert profile.provenance.kind == "measured"


def test_what_was_measured_before_an_interruption_comes_back_and_is_not_measured_again(
    server: Server, tmp_path: Path
) -> None:
    kernels = [Kernel("conv", "fp32", 8 * i, 8 * o, 12, 12, 3, 3) for i in range(1, 11) for o in range(1, 11)]
    bundle = small_bundle.make(tmp_path / "bundle", kernels)

    class Impatient(Recorder):
        def advance(self, done: int, seconds_left: float | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_on(server.board(), bundle, None, False, Impatient())
    first = (bundle / runner.RESULTS).read_bytes()
    some = read_results(bundle)
    assert 0 < some.measured < len(kernels)
    whole = first.rpartition(b"\n")[0]
    assert measure_on(server.board(), bundle, None, False, Recorder())
    assert (bundle / runner.RESULTS).read_bytes().startswith(whole)
    assert read_results(bundle).complete


def test_a_runner_that_is_killed_over_there_is_an_error_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    kernels = [Kernel("conv", "int8", 8 * i, 8 * o, 12, 12, 5, 5) for i in range(1, 11) for o in range(1, 11)]
    bundle = small_bundle.make(tmp_path / "bundle", kernels)
    folder = f"bundle-{runner.read_manifest(bundle)['bundle']}"

    class Killer(Recorder):
        def advance(self, done: int, seconds_left: float | None = None) -> None:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    ours = (process / "cwd").readlink().name == folder and b"run.py" in (
                        process / "cmdline"
                    ).read_bytes()
                except OSError:
                    continue
                if ours:
                    os.kill(int(process.name), signal.SIGKILL)

    with pytest.raises(RunError, match="ended early"):
        measure_on(server.board(), bundle, None, False, Killer())
    assert 0 < read_results(bundle).measured < len(kernels)


def test_a_limit_in_time_is_passed_on(server: Server, tmp_path: Path) -> None:
    kernels = [Kernel("conv", "fp32", 8 * i, 8 * o, 10, 10, 3, 3) for i in range(1, 11) for o in range(1, 11)]
    bundle = small_bundle.make(tmp_path / "bundle", kernels)
    assert not measure_on(server.board(), bundle, 1e-5, False, Recorder())
    assert 0 < read_results(bundle).measured < len(kernels)


def test_a_python_that_lacks_what_is_needed_is_named(server: Server, tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"cannot import numpy and onnxruntime.*--remote-python"):
        check_board(server.board(str(bare)))
    with pytest.raises(UserError, match="cannot import numpy and onnxruntime"):
        check_board(server.board("/no/such/python"))


def test_results_that_another_runtime_left_there_are_refused_with_what_to_do(server: Server, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "bundle", small_bundle.KERNELS[:3])
    measure_on(server.board(), bundle, None, False, Recorder())
    (there,) = server.home.glob(f".cache/autocomp/bundle-{runner.read_manifest(bundle)['bundle']}/results.jsonl")
    there.write_text(there.read_text().replace('"onnxruntime": "', '"onnxruntime": "0.'))
    with pytest.raises(UserError, match="start anew with --fresh"):
        measure_on(server.board(), bundle, None, False, Recorder())
    assert measure_on(server.board(), bundle, None, True, Recorder())


def test_no_connection_is_one_line(tmp_path: Path, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        board = Board.of(f"127.0.0.1:{unused.getsockname()[1]}", config=server.config)
        with pytest.raises(UserError, match="no connection to 127") as caught:
            check_board(board)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=id", "user@", "host:port", "host:0", "host:70000", "a b", "host;id", "user@-x", "a@b@c"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--ssh: expected user@host"):
        Board.of(text)


def test_addresses_with_and_without_a_port() -> None:
    assert (Board.of("pi@board").address, Board.of("pi@board").port) == ("pi@board", None)
    assert (Board.of("board.local:2222").address, Board.of("board.local:2222").port) == ("board.local", 2222)
    assert (Board.of("pi@[fe80::1]:22").address, Board.of("pi@[fe80::1]:22").port) == ("pi@fe80::1", 22)


def test_without_ssh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install an OpenSSH client"):
        check_board(Board.of("board"))
